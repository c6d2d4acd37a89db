"What CLAIMS.md and the list of all studies say is what the committed runs say."
import json, os, re, shutil

import pytest

from abs_lab import cli
from abs_lab.reports import pages, sentences
from abs_lab.reports.claims import Data, index, markdown, told
from support import ROOT

REPORTS = ROOT/"reports"


def test_every_number_of_the_claims_is_computed_from_the_committed_runs():
    assert (REPORTS/"CLAIMS.md").read_text(encoding="utf-8") == markdown(REPORTS, told(Data(REPORTS)))


def test_other_runs_give_other_claims(tmp_path, monkeypatch, capsys):
    "One arm of BTR twice as good: its verdict changes, and nothing is written until it is asked for."
    shutil.copytree(REPORTS/"btr-batch"/"data", tmp_path/"btr-batch"/"data")
    found = Data(tmp_path)
    for run in found["btr-batch"]:
        if run["params"]["arm"].startswith("ABS"): run["result"]["eval"]["mean"] += 1_000
    verdicts = {claim.claim: (verdict, sentence) for claim, verdict, sentence, _ in told(found)}
    assert verdicts["It carries over to BTR off-policy"] == ("supported", "Preliminary, with fewer than eight seeds: ABS ½–4 × base scores higher than fixed base in this data.")
    assert verdicts["ABS beats the gradient noise scale"][0] == "not tested"
    monkeypatch.setenv("ABS_LAB_REPORTS_DIR", str(tmp_path))
    assert cli.main(["claims"]) == 0 and "It carries over to BTR off-policy" in capsys.readouterr().out and not (tmp_path/"CLAIMS.md").exists()
    assert cli.main(["claims", "--publish"]) == 0 and (tmp_path/"CLAIMS.md").exists() and "not tested" in (tmp_path/"index.html").read_text()


def test_a_summary_or_a_page_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    for name, text in (("a", b"{}"), ("b", b"\xff{"), ("c", b'{"question": "<b>", "verdict": "x", "scale": "y"}')):
        (tmp_path/name).mkdir()
        (tmp_path/name/"summary.json").write_bytes(text)
        (tmp_path/name/"index.html").write_bytes(b"<figure>draw(\"figure-1\", [{\"type\": \"\xff\"}], {})</figure>")
    (tmp_path/"d").mkdir(), os.mkfifo(tmp_path/"d"/"summary.json")
    with pytest.warns(UserWarning, match="passed over") as said: page = index(tmp_path, [])
    assert [name for name in "abcd" if any(f"{tmp_path}/{name}/" in str(w.message) for w in said)] == ["a", "b", "d"] and page.read_text().count("<section>") == 1
    for key in ("RUNS", "REPORTS"): monkeypatch.setenv(f"ABS_LAB_{key}_DIR", str(tmp_path))
    assert cli.main(["figure", "a"]) == 2 and "figure 1 in" in capsys.readouterr().err


def test_the_list_of_studies_says_what_their_pages_say():
    listed = (REPORTS/"index.html").read_text(encoding="utf-8")
    summaries = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in sorted(REPORTS.glob("*/summary.json"))}
    assert len(summaries) == len(re.findall("<section>", listed)) >= 7
    for folder, said in summaries.items():
        page = (folder/"index.html").read_text(encoding="utf-8")
        assert f'<a href="{folder.name}/index.html">{folder.name}</a>' in listed
        for text in (listed, page): assert pages._inline(said["verdict"]).replace("\u00a0", " ")[:60].split("&")[0] in text.replace("\u00a0", " ")


def test_a_pair_of_one_treatment_is_called_so():
    runs = pages.finished("why", REPORTS/"why"/"data")
    pair, = sentences.matched(sentences.normalised(runs)[0], [("Adaptivity", "ABS 16–64", "replayed ABS 16–64")])
    assert max(pair.sizes.values()) < 0.05 and "nearly one treatment" in sentences.conclusion(pair)
