"""A Hub of the tests' own on the loopback interface: huggingface_hub's real client talks to it over HTTP.

It answers as the true one does, as far as the client of versions 1.31 to 2.4 asks: repositories that are created,
written and read, public or private, files by LFS on a host of their own, ranges, revisions, and its errors. What it
holds, `hub_storage.py` says. With a store for it (`hub_xet.py`) it also takes and gives files by xet.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_storage import File, HubError, Repository, User, card_metadata, is_large
from hub_xet import XetStore

_REPOSITORY = r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
_FILES = r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)"
_ROUTES: list[tuple[re.Pattern, str]] = []


def _route(method: str, pattern: str):
    def register(function):
        _ROUTES.append((re.compile(f"{method} {pattern}"), function.__name__))
        return function

    return register


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: object, status: int = 200, **headers: str) -> Answer:
        return cls(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})


@dataclass
class Request:
    """One request: what is asked for, by whom, and the words of its path."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes
    host: str
    user: User | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that fit: "drop" breaks the connection off half way."""

    pattern: str
    what: str | int
    times: int


class HubServer:
    """The Hub, as a context: `url` is its address, `repositories` what it holds, `requests` what it was asked.

    A request is kept as "METHOD /path", and the range where it wants one.

    Args:
        users: Who is known, by token.
    """

    def __init__(self, users: dict[str, User]):
        self.users = users
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.xet: XetStore | None = None
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        # Large files lie on another host than the Hub, which must never see a token.
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in ("hub", "storage")]
        self.url, self.storage_url = (
            f"http://{host}:{server.server_port}"
            for host, server in zip(("127.0.0.1", "localhost"), self._servers, strict=True)
        )

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fail(self, pattern: str, what: str | int, times: int = 1) -> None:
        """Let requests go wrong: `pattern` is searched in its line, `what` is "drop" or a status."""
        self.faults.append(Fault(pattern, what, times))

    def asked(self, pattern: str) -> list[str]:
        """Return the requests so far that `pattern` is found in."""
        return [request for request in self.requests if re.search(pattern, request)]

    def fault_of(self, line: str) -> str | int | None:
        with self._lock:
            self.requests.append(line)
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault.what
        return None

    def answer(self, request: Request) -> Answer:
        """Answer a request, or raise HubError."""
        if request.host == self.url:
            request.user = self._user_of(request.headers.get("Authorization"))
        elif "Authorization" in request.headers:
            raise HubError(400, "Only one auth mechanism allowed")
        for pattern, name in _ROUTES:
            if match := pattern.fullmatch(f"{request.method.replace('HEAD', 'GET')} {request.path}"):
                words = {key: unquote(word or "") for key, word in match.groupdict().items()}
                with self._lock:
                    return getattr(self, name)(request, **words)
        raise HubError(404, f"Cannot {request.method} {request.path}")

    def _user_of(self, authorization: str | None) -> User | None:
        if authorization is None:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def _repository(self, request: Request, kind: str, name: str, *, is_written: bool = False) -> Repository:
        # The client takes kinds as "dataset" in one address and "datasets/" in another; a model has none in some.
        kind = kind.rstrip("s/") or "model"
        repository = self.repositories.get((kind, name))
        if repository is None or not repository.may_be_read_by(request.user):
            # A stranger is not told whether it exists.
            if request.user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if is_written:
            self._check_writer(request.user, name)
        return repository

    def _check_writer(self, user: User | None, name: str) -> None:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not user.may_write or user.name != name.split("/")[0]:
            raise HubError(403, f'You don\'t have the rights to write under the namespace "{name.split("/")[0]}"')

    @_route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request) -> Answer:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        return Answer.of({"type": "user", "name": request.user.name, "orgs": []})

    @_route("POST", "/api/repos/create")
    def _create(self, request: Request) -> Answer:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        wanted, kind = request.json, request.json.get("type", "model")
        name = f"{wanted.get('organization') or request.user.name}/{wanted['name']}"
        self._check_writer(request.user, name)
        url = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.repositories:
            raise HubError(409, f"You already created this {kind} repo", url=url)
        self.repositories[kind, name] = Repository(kind, name, wanted.get("visibility") == "private")
        return Answer.of({"url": url, "name": name})

    @_route("POST", "/api/validate-yaml")
    def _validate(self, request: Request) -> Answer:
        card_metadata(request.json["content"])
        return Answer.of({"errors": [], "warnings": []})

    @_route("GET", f"{_REPOSITORY}(/revision/(?P<revision>[^/]+))?")
    def _info(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        return Answer.of(self._repository(request, kind, name).info(revision or "main"))

    @_route("GET", f"{_REPOSITORY}/auth-check(?P<write>/write)?")
    def _may_access(self, request: Request, kind: str, name: str, write: str) -> Answer:
        self._repository(request, kind, name, is_written=bool(write))
        return Answer.of({})

    @_route("GET", f"{_REPOSITORY}/refs")
    def _refs(self, request: Request, kind: str, name: str) -> Answer:
        repository = self._repository(request, kind, name)
        refs = {
            key: [{"name": ref, "ref": f"refs/{place}/{ref}", "targetCommit": commit} for ref, commit in table.items()]
            for key, place, table in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags))
        }
        return Answer.of({**refs, "converts": [], "pullRequests": []})

    @_route("POST", f"{_REPOSITORY}/(?P<what>branch|tag)/(?P<ref>[^/]+)")
    def _make_ref(self, request: Request, kind: str, name: str, what: str, ref: str) -> Answer:
        repository = self._repository(request, kind, name, is_written=True)
        if what == "branch":
            table, new, start = repository.branches, ref, request.json.get("startingPoint", "main")
        else:
            table, new, start = repository.tags, request.json["tag"], ref
        if new in table:
            raise HubError(409, f"Reference already exists: {new}")
        table[new] = repository.commit_of(start)
        return Answer.of({})

    @_route("GET", f"{_REPOSITORY}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
    def _tree(self, request: Request, kind: str, name: str, revision: str, folder: str) -> Answer:
        is_recursive = request.query.get("recursive", ["false"])[0].lower() == "true"
        return Answer.of(self._repository(request, kind, name).listing(revision, folder, is_recursive=is_recursive))

    @_route("POST", f"{_REPOSITORY}/paths-info/(?P<revision>[^/]+)")
    def _paths_info(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        paths = parse_qs(request.body.decode())["paths"]
        return Answer.of(self._repository(request, kind, name).entries_of(revision, paths))

    @_route("POST", f"{_REPOSITORY}/preupload/(?P<revision>[^/]+)")
    def _preupload(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        present = self._repository(request, kind, name, is_written=True).files(revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs"
                if is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
                else "regular",
                "shouldIgnore": False,
                "oid": present[file["path"]].etag if file["path"] in present else None,
            }
            for file in request.json["files"]
        ]
        return Answer.of({"files": files})

    @_route("GET", f"{_REPOSITORY}/xet-(?P<what>read|write)-token/[^/]+")
    def _xet_access(self, request: Request, kind: str, name: str, what: str) -> Answer:
        self._repository(request, kind, name, is_written=what == "write")
        if self.xet is None:
            raise HubError(404, "this Hub has no xet")
        access = self.xet.access()
        headers = {"X-Xet-Cas-Url": access["casUrl"], "X-Xet-Access-Token": access["accessToken"]}
        return Answer.of(access, **headers, **{"X-Xet-Token-Expiration": str(access["exp"])})

    @_route("POST", f"{_FILES}\\.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: Request, kind: str, name: str) -> Answer:
        self._repository(request, kind, name, is_written=True)
        objects = []
        for wanted in request.json["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if wanted["oid"] not in self.large_files:
                upload = {"href": f"{self.storage_url}/{wanted['oid']}?X-Amz-Signature=x"}
                verify = {"href": f"{self.url}/{kind}{name}/lfs-verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return Answer.of({"transfer": "basic", "objects": objects})

    @_route("POST", f"{_FILES}/lfs-verify")
    def _lfs_verify(self, request: Request, kind: str, name: str) -> Answer:
        self._repository(request, kind, name, is_written=True)
        self._stored(request.json["oid"], request.json["size"])
        return Answer.of({})

    @_route("PUT", "/(?P<sha256>[0-9a-f]{64})")
    def _store(self, request: Request, sha256: str) -> Answer:
        if File(request.body, True).sha256 != sha256:
            raise HubError(400, "The Content-SHA256 you specified did not match what we received")
        self.large_files[sha256] = request.body
        return Answer(headers={"ETag": f'"{sha256}"'})

    def _stored(self, sha256: str, size: int) -> File:
        if self.xet and sha256 not in self.large_files:
            self.large_files[sha256] = self.xet.read(sha256, size)
        content = self.large_files.get(sha256)
        if content is None or len(content) != size:
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        return File(content, True)

    @_route("POST", f"{_REPOSITORY}/commit/(?P<revision>[^/]+)")
    def _commit(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repository = self._repository(request, kind, name, is_written=True)
        added, deleted, header = {}, [], {}
        for line in request.body.splitlines():
            operation, value = (item := json.loads(line))["key"], item["value"]
            if operation == "header":
                header = value
            elif operation == "file":
                added[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif operation == "lfsFile":
                added[value["path"]] = self._stored(value["oid"], value["size"])
            elif operation in ("deletedFile", "deletedFolder"):
                deleted.append(value["path"])
            else:
                raise HubError(400, f"Unknown operation {operation}")
        if "README.md" in added:
            card_metadata(added["README.md"].content.decode())
        options = {"message": header["summary"], "parent": header.get("parentCommit"), "deleted": tuple(deleted)}
        commit = repository.commit(revision, added, **options)
        return Answer.of({"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"})

    @_route("GET", f"{_FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def _resolve(self, request: Request, kind: str, name: str, revision: str, path: str) -> Answer:
        repository = self._repository(request, kind, name)
        commit = repository.commit_of(revision)
        file = repository.trees[commit].get(path)
        if file is None:
            error = HubError(404, "Entry not found", "EntryNotFound")
            error.headers = {"X-Repo-Commit": commit}
            raise error
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if not file.is_large:
            return _ranged(request, file.content, headers)
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        if self.xet and (xet_hash := self.xet.hash_of(file.sha256)):
            place = f"{self.url}/api/{repository.kind}s/{name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{place}>; rel="xet-auth"'}
        return Answer(status=302, headers={**headers, "Location": f"{self.storage_url}/{file.sha256}?Signature=x"})

    @_route("GET", "/(?P<sha256>[0-9a-f]{64})")
    def _stored_file(self, request: Request, sha256: str) -> Answer:
        if sha256 not in self.large_files:
            raise HubError(404, "NoSuchKey")
        return _ranged(request, self.large_files[sha256], {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def _ranged(request: Request, content: bytes, headers: dict[str, str]) -> Answer:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if match is None:
        return Answer(content, headers=headers)
    first, last = match.groups()
    start = int(first) if first else len(content) - int(last)
    end = min(int(last) + 1, len(content)) if first and last else len(content)
    if start >= len(content):
        return Answer(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
    headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    return Answer(content[start:end], 206, headers)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        address = urlsplit(self.path)
        fault = self.hub.fault_of(f"{self.command} {address.path} {self.headers.get('Range', '')}".strip())
        # As the storage behind the true Hub, it wants to know the length first.
        size = int(self.headers.get("Content-Length", 0))
        is_dropped_early = fault == "drop" and size > 0
        body = self.rfile.read(size // 2 if is_dropped_early else size)
        if is_dropped_early:
            return self._hang_up()
        request = Request(self.command, address.path, parse_qs(address.query), self.headers, body, self._host())
        try:
            if "Transfer-Encoding" in self.headers:
                raise HubError(501, "A header you provided implies functionality that is not implemented")
            if isinstance(fault, int):
                raise HubError(fault, f"refused by the test with {fault}")
            answer = self.hub.answer(request)
        except HubError as error:
            answer = Answer.of({"error": str(error), **error.details}, error.status)
            answer.headers |= {"X-Error-Message": str(error), **getattr(error, "headers", {})}
            answer.headers |= {"X-Error-Code": error.code} if error.code else {}
        self._send(answer, is_dropped=fault == "drop")
        return None

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _host(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def _send(self, answer: Answer, *, is_dropped: bool) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if is_dropped else answer.body)
        if is_dropped:
            self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def log_message(self, *_: object) -> None:
        """Say nothing: the tests ask `HubServer.requests`."""
