"""``stm-train push`` against a server on this machine that speaks the part of the hub's protocol it needs."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest
from huggingface_hub import close_session, constants

from stm_retriever.folder import read_manifest
from stm_training import cli
from stm_training.export.card import render_card
from stm_training.export.parity import ParityCase, ParityReport
from tests.tiny_retriever import make_tiny_retriever

NAME = "lab/health"
TOKEN = "hf_" + "a" * 34  # of the shape of a real one


class Hub:
    """What the server holds, and what it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.branches: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.uploads: list[str] = []
        self.asked: list[str] = []
        self.refuse_card = False
        self.status = 0  # answer every call that needs a token with this
        self.uploads_allowed = 1000

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if path == "/api/validate-yaml":
            return (400, "licence is not one of ours") if self.refuse_card else (200, {})
        if path.startswith("/lfs/"):
            return self._upload(path.removeprefix("/lfs/"), body)
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if self.status:
            return self.status, {"error": "no"}
        return self._with_token(path, json.loads(body or b"{}") if b"\n{" not in body else {}, body)

    def _with_token(self, path: str, document: dict[str, Any], body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            name = f"{document['organization']}/{document['name']}" if document.get("organization") else ""
            if name in self.repositories:
                return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}
            self.repositories[name] = document
            return 200, {"url": f"{self.address}/{name}", "name": name}
        if path.startswith(f"/api/models/{NAME}/branch/"):
            self.branches.add(path.rpartition("/")[2])
            return 200, {}
        if path.startswith(f"/api/models/{NAME}/preupload/"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".onnx", ".safetensors")) else "regular",
                    "shouldIgnore": False,
                }
                for file in document["files"]
            ]
            return 200, {"files": files}
        if path == f"/{NAME}.git/info/lfs/objects/batch":
            return 200, {"transfer": "basic", "objects": [self._action(one) for one in document["objects"]]}
        if path.startswith(f"/api/models/{NAME}/commit/"):
            return self._commit(path.rpartition("/")[2], body)
        return 404, {"error": f"not of this stand-in: {path}"}

    def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        action: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in self.blobs:
            action["actions"] = {"upload": {"href": f"{self.address}/lfs/{wanted['oid']}"}}
        return action

    def _upload(self, oid: str, body: bytes) -> tuple[int, Any]:
        if len(self.uploads) >= self.uploads_allowed:
            return 403, {"error": "the connection to the storage broke"}
        assert hashlib.sha256(body).hexdigest() == oid
        self.uploads.append(oid)
        self.blobs[oid] = body
        return 200, {}

    def _commit(self, revision: str, body: bytes) -> tuple[int, Any]:
        lines = [json.loads(line) for line in body.splitlines()]
        files = self.commits.setdefault(revision, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
        url = f"{self.address}/{NAME}/commit/abc123"
        return 200, {"success": True, "commitOid": "abc123", "commitUrl": url}

    address = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self._chunks()
            status, document = hub.answer(
                self.command, self.path.partition("?")[0], body, self.headers.get("Authorization")
            )
            content = document.encode() if isinstance(document, str) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _chunks(self) -> bytes:
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = do_HEAD = _reply

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever folder as a run leaves it, with the card that the export writes."""
    folder = tmp_path_factory.mktemp("push") / "retriever"
    make_tiny_retriever(folder)
    manifest = read_manifest(folder).model_copy(update={"licence": "apache-2.0"})
    case = ParityCase("graph against torch", 1, 1, "none", 2e-7, 1.0)
    figures = {"fp32": ParityReport(limit=1e-4, longest_checked=96, cases=[case]).as_dict()}
    (folder / "README.md").write_text(render_card(manifest, figures, unmasked=False), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    (folder / "stage.json").write_text('{"stage": "retriever", "key": "k"}')
    return folder


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(model, tmp_path / "retriever")
    return tmp_path / "retriever"


@dataclass
class Done:
    """How the command ended."""

    returncode: int
    stdout: str
    stderr: str


class Push(Protocol):
    def __call__(self, folder: Path, *options: str, token: str = ..., **constants: Any) -> Done: ...


@pytest.fixture
def push(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Push:
    """The command in this process, with the client set to the stand-in."""
    monkeypatch.setattr(cli, "COMMANDS", tuple(dict.fromkeys((*cli.COMMANDS, "push"))))

    def pushed(folder: Path, *options: str, token: str = TOKEN, **changes: Any) -> Done:
        # The stand-in speaks LFS, not Xet.
        settings = {"ENDPOINT": hub.address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True} | changes
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", token)
        close_session()
        code = cli.main(["push", str(folder), NAME, *options])
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return pushed


def test_the_folder_arrives_whole_by_one_commit(hub: Hub, push: Push, folder: Path) -> None:
    done = push(folder, "--private")
    assert done.returncode == 0, done.stderr
    sent = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "stage.json"
    }
    assert hub.commits == {"main": sent}
    made = hub.repositories[NAME]  # the client says it in one way or the other, by its version
    assert made.get("private") is True or made.get("visibility") == "private"
    assert f"{hub.address}/{NAME}" in done.stdout
    assert sum("/commit/" in line for line in hub.asked) == 1


def test_large_files_go_by_lfs_and_are_not_sent_twice(hub: Hub, push: Push, folder: Path) -> None:
    assert push(folder).returncode == 0
    large = {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.safetensors")}
    large |= {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.onnx")}
    assert set(hub.uploads) == large
    again = push(folder)
    assert again.returncode == 0, again.stderr
    assert len(hub.uploads) == len(large)


def test_an_upload_that_breaks_says_so_and_the_same_command_goes_on(
    hub: Hub, push: Push, folder: Path
) -> None:
    hub.uploads_allowed = 1
    broken = push(folder)
    assert broken.returncode == 2
    assert "the same command goes on" in broken.stderr
    assert not hub.commits
    first = list(hub.uploads)
    assert len(first) == 1
    hub.uploads_allowed = 1000
    assert push(folder).returncode == 0
    assert hub.uploads.count(first[0]) == 1
    assert hub.commits["main"]


def test_a_branch_is_made_and_pushed_to(hub: Hub, push: Push, folder: Path) -> None:
    done = push(folder, "--revision", "v2")
    assert done.returncode == 0, done.stderr
    assert hub.branches == {"v2"}
    assert set(hub.commits) == {"v2"}


def test_a_card_that_the_hub_refuses_stops_before_anything_is_made(
    hub: Hub, push: Push, folder: Path
) -> None:
    hub.refuse_card = True
    done = push(folder)
    assert done.returncode == 2
    assert "licence is not one of ours" in done.stderr
    assert not hub.repositories


@pytest.mark.parametrize(
    ("card", "words"),
    [("# no metadata\n", "lacks"), ("---\ntags: [a\n---\n# x\n", "refuse"), (None, "missing")],
)
def test_a_card_that_cannot_pass_is_refused_before_the_hub_is_asked(
    hub: Hub, push: Push, folder: Path, card: str | None, words: str
) -> None:
    if card is None:
        (folder / "README.md").unlink()
    else:
        (folder / "README.md").write_text(card)
    done = push(folder)
    assert done.returncode == 2
    assert words in done.stderr
    assert not hub.asked


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (".env", "A=1", "secret"),
        ("onnx/id_rsa", "x", "secret"),
        ("notes.txt", f"token: {TOKEN}", "Hugging Face token"),
        ("notes.md", "-----BEGIN RSA PRIVATE KEY-----", "private key"),
        ("pytorch_model.bin", "x", "pickles"),
    ],
)
def test_a_file_that_must_not_leave_stops_the_command_before_anything_is_sent(
    hub: Hub, push: Push, folder: Path, name: str, content: str, words: str
) -> None:
    (folder / name).write_text(content)
    done = push(folder)
    assert done.returncode == 2
    assert words in done.stderr
    assert TOKEN not in done.stderr
    assert not hub.asked


def test_a_link_is_not_followed_to_the_hub(hub: Hub, push: Push, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("private")
    (folder / "notes.txt").symlink_to(tmp_path / "private.txt")
    assert "is a link" in push(folder).stderr
    assert not hub.asked


def test_a_file_larger_than_the_hub_takes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stm_retriever.errors import ConfigError
    from stm_training.hub.checks import check_folder

    monkeypatch.setattr("stm_training.hub.checks.LARGEST", 1000)
    with pytest.raises(ConfigError, match="at most 1000"):
        check_folder(folder)


@pytest.mark.parametrize(("status", "words"), [(403, "may not write"), (404, "no such organisation")])
def test_what_the_hub_refuses_is_explained(
    hub: Hub, push: Push, folder: Path, status: int, words: str
) -> None:
    hub.status = status
    done = push(folder)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_wrong_token_and_offline_mode_are_explained(hub: Hub, push: Push, folder: Path) -> None:
    assert "hf auth login" in push(folder, token="hf_wrong").stderr
    assert "HF_HUB_OFFLINE" in push(folder, HF_HUB_OFFLINE=True).stderr


def test_a_hub_that_cannot_be_reached_is_explained(hub: Hub, push: Push, folder: Path) -> None:
    done = push(folder, ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "could not be reached" in done.stderr


def test_a_name_without_an_organisation_and_a_folder_that_is_no_retriever_are_refused(
    hub: Hub, push: Push, folder: Path, tmp_path: Path
) -> None:
    from stm_retriever.errors import ConfigError, ModelFolderError
    from stm_training.hub.push import push_folder

    with pytest.raises(ConfigError, match="organisation"):
        push_folder(folder, "health")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFolderError):
        push_folder(tmp_path / "empty", NAME)


def test_a_dry_run_lists_the_files_and_asks_nobody(hub: Hub, push: Push, folder: Path) -> None:
    done = push(folder, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "onnx/model.onnx" in done.stdout
    assert "stage.json" not in done.stdout
    assert not hub.asked
