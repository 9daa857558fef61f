"""What every request passes: its key, its id, its line in the log; and what a log never says."""

import asyncio
import base64
import json
import re
from pathlib import Path

import httpx
import pytest

from app.faces.face import problem
from app.gate import Gate

SECRET, OTHER, FILED = "key-geheim-1", "key-geheim-2", "key-geheim-3"
ACCENTED = "clé-geheim-4"


@pytest.fixture(scope="module")
def locked(doubles, tmp_path_factory):
    """A service with keys from all three places, and a hub token."""
    from tests.conftest import Service

    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys").write_text(f"# of the team\n{FILED}\n")
    settings = {
        "MODEL": "brittle",
        "MODELS_PATH": doubles,
        "API_KEYS": f"{SECRET}, spare, {ACCENTED}",
        "GENERATION_AUTH_KEY": OTHER,
        "API_KEY_FILE": str(folder / "keys"),
        "HF_TOKEN": "hf_geheim",
        "GRACE": "0",
    }
    service = Service(folder, settings).ready()
    service.client.headers.pop("X-API-Key")
    yield service
    service.stop()


def test_a_worker_is_told_no_secret(locked):
    (worker,) = locked.workers()
    told = Path(f"/proc/{worker}/environ").read_text()
    assert "PATH=" in told
    assert not [secret for secret in (SECRET, OTHER, "hf_geheim") if secret in told]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": SECRET},
        {"X-API-Key": "spare"},
        {"X-API-Key": OTHER},
        {"Authorization": f"Bearer {FILED}"},
        {"Authorization": f"bearer  {SECRET}"},
        {"Authorization": OTHER},
        {"Authorization": basic("anybody", SECRET)},
        {"Authorization": basic(SECRET, "")},
        {"X-API-Key": "wrong", "Authorization": f"Bearer {SECRET}"},
        {"X-API-Key": ACCENTED.encode()},
        {"X-API-Key": ACCENTED.encode("latin-1")},
        {"Authorization": f"Bearer {ACCENTED}".encode()},
        {"Authorization": basic("anybody", ACCENTED)},
    ],
    ids=str,
)
def test_a_key_opens_in_every_form_it_is_shown_in(locked, headers):
    assert locked.client.get("/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "wrong"},
        {"X-API-Key": SECRET[:-1]},
        {"X-API-Key": SECRET.upper()},
        {"X-API-Key": f"{SECRET}, spare"},
        {"X-API-Key": "# of the team"},
        {"X-API-Key": "schlüssel".encode()},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic !!!"},
        {"Authorization": basic("a", "b")},
        {"Authorization": "Digest " + SECRET},
        {"Cookie": f"key={SECRET}"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/jobs", "/docs", "/openapi.json", "/no/such", "/healthy"])
def test_without_a_key_every_route_is_401(locked, headers, path):
    answer = locked.client.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["status"]) == ("unauthorized", 401)
    assert "X-API-Key" in problem["detail"]


def test_the_key_is_asked_for_before_the_body_is_read(locked):
    answer = locked.client.post("/jobs", content=b"{")
    assert answer.status_code == 401
    assert locked.client.post("/pipeline/run", json={}).json()["status"] == "error"


def test_health_needs_no_key(locked):
    assert locked.client.get("/health").json() == {"status": "healthy"}
    assert locked.client.get("/health/ready").status_code == 200


def test_an_idempotency_key_belongs_to_its_caller(locked):
    def post(key: str) -> str:
        headers = {"X-API-Key": key, "Idempotency-Key": "mine"}
        return locked.client.post("/jobs", json={"prompt": "well"}, headers=headers).json()["id"]

    assert post(SECRET) == post(SECRET) != post(OTHER)


def test_no_secret_and_no_prompt_is_in_the_log_or_the_records(locked):
    word = "unspeakable"
    headers = {"Authorization": f"Bearer {SECRET}", "Prefer": "wait=60"}
    for prompt in (word, f"raise {word}", f"abort {word}"):
        locked.client.post("/jobs", json={"prompt": prompt}, headers=headers)
    locked.client.post("/jobs", json={"prompt": word, "steps": 0}, headers=headers)
    locked.client.get(f"/jobs?state={word}", headers=headers)
    locked.client.get("/jobs", headers={"X-API-Key": f"wrong-{SECRET}"})
    assert word not in locked.log()
    assert "geheim" not in locked.log()
    for file in (locked.folder / "data").glob("easel.db*"):
        assert b"geheim" not in file.read_bytes()


def test_every_request_is_one_structured_line_with_its_id(brittle):
    given = {"X-Request-ID": "from-the.caller:1"}
    answer = brittle.client.get("/models/none", headers=given)
    assert answer.headers["x-request-id"] == "from-the.caller:1"
    brittle.wait_for(lambda: requests(brittle, "from-the.caller:1") != [])
    [line] = requests(brittle, "from-the.caller:1")
    assert (line["method"], line["path"], line["status"]) == ("GET", "/models/none", 404)
    assert line["level"] == "info"
    assert line["ms"] >= 0
    assert set(line) == {
        "time",
        "level",
        "event",
        "request_id",
        "method",
        "path",
        "status",
        "ms",
    }


def requests(service, request_id: str) -> list[dict]:
    return [
        line
        for line in service.log_lines()
        if line["event"] == "request" and line.get("request_id") == request_id
    ]


def test_health_checks_do_not_fill_the_log(brittle):
    brittle.client.get("/health")
    assert not [line for line in brittle.log_lines() if line.get("path") == "/health"]


def test_a_path_with_control_characters_stays_one_line(brittle):
    brittle.client.get("/no%0a%7b%22level%22:%22error%22%7d")
    brittle.wait_for(lambda: any("/no\n" in line.get("path", "") for line in brittle.log_lines()))


def test_every_job_is_one_line_with_the_id_of_its_own_request(brittle):
    """Also when it was started by the end of another, or ended by somebody else's request."""
    brittle.running(first := brittle.submit("slow", steps=5000))
    jobs = {}
    for name in ("one", "two", "three"):
        answer = brittle.client.post(
            "/jobs", json={"prompt": "well"}, headers={"X-Request-ID": name}
        )
        jobs[answer.json()["id"]] = name
    brittle.client.delete(f"/jobs/{first}", headers={"X-Request-ID": "the-end"})
    for job in jobs:
        brittle.ended(job)
    ends = [line for line in brittle.log_lines() if line["event"] == "job ended"]
    assert {line["job"]: line["request_id"] for line in ends if line["job"] in jobs} == jobs
    [line] = [line for line in ends if line["job"] == first]
    assert line["state"] == "canceled"
    assert line["request_id"] != "the-end"
    assert {"model", "device", "ms", "error"} <= set(line)


def test_all_that_is_logged_is_json(brittle):
    """But for the welcome, which is for the person at the terminal."""
    lines = [line for line in brittle.log().splitlines() if line.startswith("{")]
    assert lines
    for line in lines:
        assert {"time", "level", "event"} <= set(json.loads(line))


def test_a_bug_is_answered_with_the_requests_id_and_without_its_traceback():
    """Through the gate alone: no route of the service is meant to raise."""

    async def broken(scope, receive, send):
        raise RuntimeError("a secret detail")

    gate = Gate(broken, keys=(), render=lambda path, error: problem(error))
    transport = httpx.ASGITransport(app=gate)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://easel") as client:
            return await client.get("/jobs", headers={"X-Request-ID": "mine"})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
    assert answer.json()["code"] == "error"
    assert "secret" not in answer.text


def test_the_documentation_page_needs_no_internet(service):
    page = service.client.get("/docs").text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) >= 2  # the script and its style
    for address in addresses:
        assert address.startswith("/static-offline-docs/")
        assert service.client.get(address).status_code == 200
    assert "http://" not in page
    assert "https://" not in page
