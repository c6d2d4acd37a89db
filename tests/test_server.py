"Who may touch the page that `abs-lab dashboard` serves: each way in that was found once, tried from outside."
import asyncio, http.client, importlib.util, json, subprocess, sys, time
from types import SimpleNamespace

import pytest

for package in ("jupyter_server", "voila"):
    if not importlib.util.find_spec(package): pytest.skip(f"{package} is not installed", allow_module_level=True)

from abs_lab.live import server
from abs_lab.runs.config import configure
from abs_lab.runs.session import Session
from support import environment, finish

PAGE, PROTOCOL = "/voila/render/abs_lab.ipynb", "v1.kernel.websocket.jupyter.org"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "The server as a person starts it, with its port, the token of its link, and the cookie of who has opened it."
    folder = tmp_path_factory.mktemp("served")
    with open(folder/"log", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "abs_lab", "dashboard", "--no-browser"], cwd=folder, env=environment(runs_dir=folder/"runs"), stdout=log, stderr=log, text=True)
    until = time.monotonic() + 120
    while "?token=" not in (said := (folder/"log").read_text()): assert process.poll() is None and time.monotonic() < until, said; time.sleep(0.1)
    link = next(line.strip() for line in said.split("\n") if "?token=" in line)
    here = SimpleNamespace(port=int(link.split(":")[2].split("/")[0]), token=link.split("token=")[1], process=process, cookie="")
    here.cookie = "; ".join(value.split(";")[0] for name, value in answer(here, f"/api/kernels?token={here.token}")[1] if name.lower() == "set-cookie")
    yield here
    process.terminate()
    assert finish(process, 60)[0] == 0


def answer(served, path, method="GET", **headers):
    "Status, headers and text of what is answered."
    c = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    c.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    r = c.getresponse()
    return r.status, r.getheaders(), r.read().decode()


def kernels(served): return json.loads(answer(served, "/api/kernels", Authorization=f"token {served.token}")[2])


@pytest.fixture(scope="module")
def kernel(served):
    "The id of a kernel, as another user reads it in the list of processes."
    status, _, text = answer(served, "/api/kernels", "POST", Authorization=f"token {served.token}")
    assert status == 201, text
    return json.loads(text)["id"]


def connected(served, kernel, protocol=PROTOCOL, say=None, **headers):
    "Open a kernel's websocket: 101 and the types of what came back, or the status with which it was refused."
    from tornado.httpclient import HTTPClientError, HTTPRequest
    from tornado.websocket import websocket_connect
    async def talk():
        request = HTTPRequest(f"ws://127.0.0.1:{served.port}/api/kernels/{kernel}/channels?session_id=s", headers={name.replace("_", "-"): value for name, value in headers.items()}, request_timeout=30)
        try: socket = await websocket_connect(request, subprotocols=[protocol] if protocol else None)
        except HTTPClientError as e: return e.code, []
        heard = []
        if say:
            await socket.write_message(say, binary=True)
            try:
                while message := await asyncio.wait_for(socket.read_message(), 3): heard.append(message)
            except asyncio.TimeoutError: pass
        socket.close()
        return 101, heard
    return asyncio.run(talk())


def message(kind, **content):
    "A request on the shell channel, in the present protocol and unsigned: the server signs it."
    parts = [b"shell", *(json.dumps(part).encode() for part in (dict(msg_id="1", msg_type=kind, username="", session="s", date="", version="5.3"), {}, {}, content))]
    ends = [8 * (2 + len(parts))]
    for part in parts: ends.append(ends[-1] + len(part))
    return len(ends).to_bytes(8, "little") + b"".join(end.to_bytes(8, "little") for end in ends) + b"".join(parts)


def test_nothing_is_answered_without_the_token(served, kernel):
    before = len(kernels(served))
    for path in ("/", PAGE, f"{PAGE}?token=wrong"): assert answer(served, path)[0] in (302, 403)
    assert "/login" in dict(answer(served, PAGE)[1])["Location"]
    for path in ("/api/kernels", f"/api/kernels/{kernel}"): assert answer(served, path)[0] == 403
    assert answer(served, "/api/kernels", "POST")[0] == answer(served, f"/voila/api/shutdown/{kernel}", "POST")[0] == 403
    assert connected(served, kernel)[0] == 403
    assert len(kernels(served)) == before


def test_a_foreign_name_for_this_machine_is_refused(served, kernel):
    "DNS rebinding: the browser takes a page of evil.example for one of this server."
    evil = f"evil.example:{served.port}"
    assert answer(served, PAGE, Host=evil, Cookie=served.cookie)[0] in (403, 404)
    assert connected(served, kernel, Host=evil, Origin=f"http://{evil}", Cookie=served.cookie)[0] in (403, 404)


def test_a_foreign_page_opens_no_connection_and_starts_no_kernel(served, kernel):
    "Also with the cookie of a person who has the dashboard open: a page of another port is of the same site."
    before = len(kernels(served))
    for origin in ("http://evil.example", f"http://127.0.0.1:{served.port + 1}"): assert connected(served, kernel, Origin=origin, Cookie=served.cookie)[0] == 403
    for dest in ("image", "iframe", "script", "empty"): assert answer(served, PAGE, Cookie=served.cookie, Sec_Fetch_Dest=dest)[0] == 403
    assert answer(served, "/api/kernels", "POST", Cookie=served.cookie)[0] == 403  # no other site can read the cookie against forgery
    assert len(kernels(served)) == before


def test_who_has_the_link_is_connected_and_widgets_can_speak_but_code_cannot(served, kernel):
    origin = f"http://127.0.0.1:{served.port}"
    assert answer(served, f"{PAGE}?token={served.token}")[0] == 302  # to the same page without the token in its address
    status, heard = connected(served, kernel, say=message("kernel_info_request"), Origin=origin, Cookie=served.cookie)
    assert status == 101 and any(b"kernel_info_reply" in part for part in heard)
    _, heard = connected(served, kernel, say=message("execute_request", code="1", silent=False), Origin=origin, Cookie=served.cookie)
    assert not any(b"execute_reply" in part for part in heard)


def test_another_protocol_is_refused_and_holds_up_nobody(served, kernel):
    for protocol in ("", "v0.something"): assert connected(served, kernel, protocol, Cookie=served.cookie)[0] == 400
    began = time.monotonic()
    assert answer(served, "/api/kernels", Cookie=served.cookie)[0] == 200 and time.monotonic() - began < 10


def test_every_answer_forbids_to_ask_another_host(served):
    policy = dict(answer(served, "/login")[1])["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy


@pytest.fixture
def managed(monkeypatch):
    "Kernels without processes."
    manager, ended = server.Kernels(), []
    async def start(self, **given):
        name = f"k{len(self._kernels) + len(ended)}"
        self._kernels[name] = SimpleNamespace(provisioner=SimpleNamespace(pid=name), execution_state="idle")
        return name
    async def end(kernel_id, **given): ended.append(kernel_id); del manager._kernels[kernel_id]
    monkeypatch.setattr(server.AsyncMappingKernelManager, "start_kernel", start)
    monkeypatch.setattr(server, "trains", lambda pid: pid in manager.at_work)
    monkeypatch.setattr(manager, "stop_buffering", lambda kernel_id: None)
    manager.shutdown_kernel, manager.at_work, manager.ended = end, set(), ended
    return manager


def test_there_are_a_few_kernels_and_no_more(managed):
    async def go():
        await asyncio.gather(*(managed.start_kernel() for _ in range(9)))
        assert len(managed) == managed.most and managed.ended == ["k0", "k1", "k2", "k3", "k4"]  # the oldest first
        managed._kernel_connections["k5"] = 1
        managed.at_work = {"k6", "k7", "k8"}
        with pytest.raises(server.web.HTTPError, match="close one"): await managed.start_kernel()
    asyncio.run(go())


def test_a_kernel_that_trains_nothing_and_has_no_page_is_ended(managed):
    async def go():
        for _ in range(3): await managed.start_kernel()
        managed._kernel_connections["k0"], managed.at_work = 1, {"k1"}
        for _ in range(2):
            for kernel in list(managed._kernels):
                managed.needed[kernel] -= 2 * managed.patience
                await managed.cull_kernel_if_idle(kernel)
        assert managed.ended == ["k2"]
        late = await managed.start_kernel()
        managed.get_kernel(late).execution_state, managed.needed[late] = "busy", 0.0  # on a slow machine, its page is still being made
        await managed.cull_kernel_if_idle(late)
        assert late in managed and managed.needed[late] > 0
        managed.at_work = set()  # its run is finished
        managed.needed["k1"] -= 2 * managed.patience
        await managed.cull_kernel_if_idle("k1")
        assert managed.ended == ["k2", "k1"]
    asyncio.run(go())


def test_a_process_trains_while_its_run_does(tmp_path, monkeypatch):
    import os
    for key, value in dict(THREADS="1", DEVICE="cpu", RUNS_DIR=str(tmp_path)).items(): monkeypatch.setenv(f"ABS_LAB_{key}", value)
    session = Session(configure(env_id="CartPole-v1", num_envs=16, total_steps=10**8, eval_envs=2))
    session.start()
    until = time.monotonic() + 60
    while not server.trains(os.getpid()): assert time.monotonic() < until; time.sleep(0.05)
    assert not server.trains(1)
    session.pause(); session.wait(60)
    time.sleep(0.1)
    assert not server.trains(os.getpid())
    session.stop(); session.wait(60)
