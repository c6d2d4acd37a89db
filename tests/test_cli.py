"The command line: what it says of a run before it trains, and what a shell completes."
import json, re, shutil, subprocess, sys

import pytest

from abs_lab import cli


def said(capsys, line, code=0):
    "What a command prints."
    assert cli.main(line.split()) == code
    return capsys.readouterr().out


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ABS_LAB_RUNS_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("line", ["pqn --num-envs 8 --size 16 --epochs-rule equal --epochs 3", "ppo --size 64", "btr --preset dqn --learning-starts 500 --size 32 --coupling samples"])
def test_a_dry_run_tells_the_updates_and_gradient_steps_of_the_run(line, runs, capsys):
    line = f"train {line} --env-id CartPole-v1 --total-steps 3000 --controller fixed --eval-envs 2"
    told = said(capsys, f"{line} --dry-run")
    assert "(not begun)" in told and not [*runs.iterdir()] and re.search(r"memory +\d\.\d GB", told)
    said(capsys, line)
    result = json.loads(next(runs.glob("train/*/result.json")).read_text())
    assert [int(re.search(rf"  {name} +([\d,]+)\n", told)[1].replace(",", "")) for name in ("updates", "gradient steps")] == [result["updates"], result["gradient_steps"]]


def test_returns_are_printed_with_the_digits_that_the_task_needs(runs, capsys):
    assert cli.main("train pqn --env-id abs_lab.core.corridor:abs_lab/Corridor-v0 --num-envs 8 --total-steps 4000 --eval-envs 2".split()) == 0
    told, result = capsys.readouterr(), json.loads(next(runs.glob("train/*/result.json")).read_text())
    assert f"mean return {result['eval']['mean']:.3f} over 2 episodes" in told.out and abs(result["eval"]["mean"]) < 1
    assert re.search(r"ret=-?\d+\.\d{3}\b", told.err) and not re.search(r"ret=-?\d+\.\d\b", told.err)


def test_help_of_train_names_agents_presets_and_rules(capsys):
    told = said(capsys, "train --help")
    for word in ("pqn", "purejaxql_minatar", "mujoco_64", "replayed", "--eval-max-steps ", "--dry-run", "divergence"): assert word in told


def test_an_agent_plays_into_a_file(runs, capsys, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(runs)
    assert ".gif" in said(capsys, "train pqn --env-id CartPole-v1 --num-envs 8 --total-steps 2000 --eval-envs 2 --video a.gif")
    run = next(runs.glob("train/*"))
    told = said(capsys, f"play train/{run.name} --episodes 2 --max-steps 20")
    with image.open(runs/f"{run.name}.gif") as film: assert film.size == (300, 200)
    assert re.fullmatch(rf"return .*, .*; \d+ pictures in {run.name}.gif\n", told)
    for line, words in (("play nowhere", run.name), (f"play {run} --out x.avi", ".mp4"), (f"play {run} --episodes 0", "at least 1"), ("train pqn --env-id CartPole-v1 --video x.png", ".gif")):
        assert cli.main(line.split()) == 2 and words in capsys.readouterr().err


TYPED = [(["abs-lab", "tr"], ["train"]), (["abs-lab", "train", "b"], ["btr"]), (["abs-lab", "train", "ppo", "--preset", "mu"], ["mujoco", "mujoco_64"]), (["abs-lab", "train", "pqn", "--env-o"], ["--env-options"]),
         (["abs-lab", "train", "pqn", "--controller", "re"], ["replayed"]), (["abs-lab", "reproduce", "ppo-m"], ["ppo-mujoco"]), (["abs-lab", "figure", "why", "pairs", "--t"], ["--to"]), (["abs-lab", "train", "btr", "--epsilon-d"], ["--epsilon-decay"])]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("line, words", [("--env-id CartPole-v1 --video a.mp4", "pip install 'abs_lab[video]'"), ("--env-id abs_lab.core.corridor:abs_lab/Corridor-v0 --video a.gif", "does not render")])
def test_a_film_that_cannot_be_made_is_refused_before_training(line, words, runs, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert cli.main(f"train pqn {line} --num-envs 8 --total-steps 2000".split()) == 2
    assert words in capsys.readouterr().err and not [*runs.iterdir()]


def test_what_bash_completes(capsys):
    script = said(capsys, "completion bash")
    for words, found in TYPED:
        line = f'COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _abs_lab; printf "%s\\n" "${{COMPREPLY[@]}}"'
        assert subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True).stdout.split() == found, words
    assert said(capsys, "completion zsh").endswith(script) and cli.main(["completion", "fish"]) == 2
