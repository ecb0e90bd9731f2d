"""`/api/jobs`: who may see and touch which job."""

from __future__ import annotations

import pytest

from forebay.core.kinds import Kind
from forebay.core.spec import JobSpec, JobView
from forebay.errors import BadRequest, NotFound
from forebay.gateway.jobs_api import answer


class Jobs:
    """The four calls that this page makes, over a plain dictionary."""

    def __init__(self) -> None:
        self.views = {}
        self.asked = []
        for number, tenant in enumerate(["a", "a", "b"]):
            job = f"{number:x}" * 32
            spec = JobSpec(id=job, kind=Kind.TEXT, pool="text/m", params={"x": "secret"},
                           tenant=tenant)  # fmt: skip
            self.views[job] = JobView(spec=spec, state="failed", epoch="e", code="poison")

    async def jobs(self, *, dead=False, limit=200):
        return list(self.views.values())[:limit]

    async def status(self, job):
        if job not in self.views:
            raise NotFound(f"no job {job}")
        return self.views[job]

    async def cancel(self, job, *, reason=""):
        self.asked.append(("cancel", job))
        return self.views[job]

    async def retry(self, job):
        self.asked.append(("retry", job))
        return self.views[job]


@pytest.fixture
def jobs():
    return Jobs()


async def test_a_tenant_sees_its_own_jobs_and_an_administrator_all(jobs):
    own = await answer(jobs, "a", "GET", "", {})
    assert [j["tenant"] for j in own["jobs"]] == ["a", "a"]
    assert len((await answer(jobs, None, "GET", "", {}))["jobs"]) == 3


async def test_what_was_asked_for_is_not_shown(jobs):
    assert "secret" not in str(await answer(jobs, None, "GET", "/" + "0" * 32, {}))


async def test_another_tenants_job_is_answered_like_none(jobs):
    for path in ("/" + "2" * 32, "/" + "2" * 8, "/" + "f" * 32, "/" + "f" * 8):
        with pytest.raises(NotFound):
            await answer(jobs, "a", "GET", path, {})
    with pytest.raises(NotFound):
        await answer(jobs, "a", "POST", "/" + "2" * 32 + "/cancel", {})
    assert jobs.asked == []


async def test_a_beginning_of_the_id_will_do(jobs):
    await answer(jobs, "b", "POST", "/222222/retry", {})
    await answer(jobs, None, "POST", "/000000/cancel", {})
    assert jobs.asked == [("retry", "2" * 32), ("cancel", "0" * 32)]


@pytest.mark.parametrize(("kind", "ended", "again"), [
    (Kind.RECOGNITION, False, False),
    (Kind.SPEECH, False, False),
    (Kind.RECOGNITION, True, True),
    (Kind.IMAGE, False, True),
])  # fmt: skip
async def test_a_live_job_without_the_end_of_its_input_is_not_retried(jobs, kind, ended, again):
    job = "d" * 32
    spec = JobSpec(id=job, kind=kind, pool=f"{kind}/m", params={})
    jobs.views[job] = JobView(spec=spec, state="failed", epoch="e", code="engine_failed",
                              input_ended=ended, units=4800)  # fmt: skip
    if again:
        await answer(jobs, None, "POST", f"/{job}/retry", {})
        assert jobs.asked == [("retry", job)]
        return
    with pytest.raises(BadRequest, match=r"client is gone and its input has no end \(4800 units"):
        await answer(jobs, None, "POST", f"/{job}/retry", {})
    assert jobs.asked == []


@pytest.mark.parametrize("limit", ["0", "x", "1001", "-1", "9" * 400, "٣"])
async def test_a_bad_limit_is_refused(jobs, limit):
    with pytest.raises(BadRequest):
        await answer(jobs, None, "GET", "", {"limit": limit})


async def test_too_short_a_beginning_is_refused(jobs):
    with pytest.raises(BadRequest):
        await answer(jobs, None, "GET", "/222", {})


@pytest.mark.parametrize(("method", "path"), [("PUT", ""), ("POST", "/a/b/c"), ("GET", "/a/b")])
async def test_anything_else_is_not_found(jobs, method, path):
    with pytest.raises(NotFound):
        await answer(jobs, None, method, path, {})
