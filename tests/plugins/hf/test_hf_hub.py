"""Hub ids, against a small hub on this machine and without one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from tests.plugins.hf.hf_models import CPU, batch, random_model, relative, saved
from xarch import PlanError, SourceInfo, UsageError
from xarch_hf.source import HFOptions, HFSource
from xarch_hf.teacher import HFTeacher

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """One repository, served the way huggingface_hub asks for it; notes what is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []  # type: ignore[var-annotated]
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                part = " part" if "Range" in self.headers else ""
                hub.asked.append(f"{self.command} {self.path}{part}")
                path = self.path.split("?")[0]
                if path.startswith("/api/models/me/model/revision/v9"):
                    self.reply(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
                elif path.startswith("/api/models/me/model"):
                    data = json.dumps(hub.listing(path)).encode()
                    self.reply(200, data, body, {"Content-Type": "application/json"})
                elif path.startswith("/me/model/resolve/"):
                    file = hub.folder / path.split("/", 5)[5]
                    if not file.is_file():
                        self.reply(404, b"", body, {"X-Error-Code": "EntryNotFound"})
                        return
                    data = file.read_bytes()
                    tag = hashlib.sha256(data).hexdigest()
                    headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
                    if part:
                        first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
                        data = data[first : last + 1]
                    self.reply(206 if part else 200, data, body, headers)
                else:
                    self.reply(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})

            def reply(self, status: int, data: bytes, body: bool, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if body:
                    self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def listing(self, path: str) -> Any:
        files = sorted(f for f in self.folder.iterdir() if f.is_file())
        if "/tree/" in path:
            return [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
        siblings = [{"rfilename": f.name, "size": f.stat().st_size} for f in files]
        return {"_id": "1", "id": "me/model", "modelId": "me/model", "sha": COMMIT, "siblings": siblings, "tags": []}

    def downloaded(self) -> set[str]:
        """Files that were asked for whole."""
        whole = (a for a in self.asked if a.startswith("GET") and "/resolve/" in a and not a.endswith(" part"))
        return {a.rsplit("/", 1)[-1] for a in whole}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "repo").mkdir()
    made = Hub(tmp_path / "repo")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Points huggingface_hub at a server and at an empty cache, which its environment variables do at import."""

    def point(url: str, *, offline: bool = False) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        huggingface_hub.close_session()

    return point


def describe(ref: str, **options: Any) -> SourceInfo:
    return HFSource().describe(ref, HFOptions(**options))


def load(ref: str, **options: Any) -> HFTeacher:
    return HFSource().load(ref, HFOptions(**options), device=CPU, dtype=torch.float32)


def test_weights_of_the_hub_that_do_not_fit_are_found_by_their_headers(hub: Hub, connect: Any) -> None:
    """h16: names and both shapes, in the plan, before anything is downloaded."""
    saved("llama", hub.folder)
    config = json.loads((hub.folder / "config.json").read_text())
    (hub.folder / "config.json").write_text(json.dumps({**config, "vocab_size": 60}))
    connect(hub.url)
    with pytest.raises(PlanError, match=r"embed_tokens\.weight has shape \(61, 32\).* implies \(60, 32\)"):
        describe("me/model")
    assert "model.safetensors" not in hub.downloaded()


@torch.no_grad()
def test_a_model_of_the_hub(hub: Hub, connect: Any) -> None:
    model: Any = saved("llama", hub.folder)
    (hub.folder / "pytorch_model.bin").write_bytes(b"never wanted")
    (hub.folder / "consolidated.00.pth").write_bytes(b"never wanted")
    connect(hub.url)
    info = describe("me/model")
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert info.weight_bytes == (hub.folder / "model.safetensors").stat().st_size
    assert info.details["revision"] == COMMIT
    assert info.details["repository"] == "me/model"
    assert "config.json" in hub.downloaded()
    assert "model.safetensors" not in hub.downloaded()

    data = batch()
    wanted = model(data["input_ids"]).logits
    made = load("me/model@main")
    assert made.ref == "hf:me/model@main"
    assert relative(made.collect(data, ["logits"])["logits"].full(), wanted) < 1e-5
    assert "model.safetensors" in hub.downloaded()
    assert not {"pytorch_model.bin", "consolidated.00.pth"} & hub.downloaded()

    before = len(hub.asked)
    connect(hub.url, offline=True)
    again = load("me/model")
    assert again.fingerprint == made.fingerprint
    assert len(hub.asked) == before
    assert describe("me/model").details["files"] == ["model.safetensors"]


@pytest.mark.slow
@torch.no_grad()
def test_pickles_of_the_hub_are_left_there(hub: Hub, connect: Any) -> None:
    model: Any = random_model("llama")
    model.config.save_pretrained(hub.folder)
    torch.save(model.state_dict(), hub.folder / "pytorch_model.bin")
    connect(hub.url)
    with pytest.raises(UsageError, match=r"no model\*\.safetensors.*\n.*--allow-pickle"):
        load("me/model")
    assert describe("me/model").weight_bytes == (hub.folder / "pytorch_model.bin").stat().st_size
    assert "pytorch_model.bin" not in hub.downloaded()
    data = batch()
    seen = load("me/model", allow_pickle=True).collect(data, ["logits"])["logits"].full()
    assert relative(seen, model(data["input_ids"]).logits) < 1e-5


def test_a_model_or_a_revision_the_hub_does_not_have(hub: Hub, connect: Any) -> None:
    saved("llama", hub.folder)
    connect(hub.url)
    with pytest.raises(
        UsageError, match=r"hf:me/typo is neither a local folder nor a model on the hub.*\n.*auth login"
    ):
        describe("me/typo")
    with pytest.raises(UsageError, match="hf:me/model has no revision 'v9'"):
        describe("me/model@v9")


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_hub_the_next_command_is_named(offline: bool, connect: Any) -> None:
    connect("http://127.0.0.1:9", offline=offline)
    wanted = r"hf:me/model@v1 .*cannot be reached.*\n.*hf download me/model --revision v1"
    with pytest.raises(UsageError, match=wanted):
        describe("me/model@v1")


@pytest.mark.slow
def test_the_environment_can_forbid_the_network(hub: Hub, tmp_path: Path) -> None:
    code = (
        "from xarch_hf.source import HFOptions, HFSource\n"
        "try: HFSource().describe('me/model', HFOptions())\n"
        "except Exception as e: print(type(e).__name__, e.what)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "UsageError hf:me/model is not in the local cache" in done.stdout
    assert hub.asked == []
