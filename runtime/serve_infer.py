"""From a body to an answer: what happens to one inference request, and in which thread.

Small requests are read on the event loop, for handing them over would cost more than reading them. Whatever could take
longer than a millisecond (much JSON, a compressed body, a large tensor, a picture) is done in other threads.
"""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from engineworks.runtime.classify import predictions
from engineworks.runtime.errors import BundleError
from engineworks.runtime.oip_errors import Refusal, bad
from engineworks.runtime.oip_request import Request, header_length, read_request, request_of
from engineworks.runtime.oip_response import write_response
from engineworks.runtime.serve_body import deflate, inflate
from engineworks.runtime.serve_bridge import Bridge
from engineworks.runtime.serve_limits import Limits, Share
from engineworks.runtime.serve_metrics import Metrics, ModelMetrics
from engineworks.runtime.serve_model import Outcome, Served, padded_picture
from engineworks.runtime.serve_reply import JSON, Headers, Reply, json_reply

_AT_ONCE_JSON = 16 << 10  # bytes
_AT_ONCE_BODY = 1 << 20
_PICTURES = ("JPEG", "PNG", "WEBP")


class Inference:
    """What every request needs: the bridge to the workers, threads, limits and metrics."""

    def __init__(self, bridge: Bridge, threads: Executor, limits: Limits, metrics: Metrics) -> None:
        self._bridge, self._threads, self.limits, self._metrics = bridge, threads, limits, metrics
        self._counters: dict[Served, ModelMetrics] = {}

    def counters(self, served: Served) -> ModelMetrics:
        """Return the metrics of a version, made when it is first used."""
        found = self._counters.get(served)
        if found is None:
            self._counters = {known: value for known, value in self._counters.items() if not known.retired}
            found = self._counters[served] = self._metrics.of(served)
            served.observe = found.ran
        return found

    async def infer(
        self, served: Served, body: bytes, headers: Mapping[bytes, bytes], share: Share, scope: Any
    ) -> Reply:
        """Answer ``POST /v2/models/M/infer``.

        Raises:
            Refusal: and every error that ``refusal_of`` knows.
        """
        began = time.perf_counter_ns()
        encoding = headers.get(b"content-encoding")
        if encoding not in {None, b"", b"identity"}:
            body = await self._elsewhere(inflate, body, encoding, self.limits, share)
        length = header_length(headers.get(b"inference-header-content-length"), len(body))
        arguments = (body, length, served.manifest, served.rules, self.limits.json)
        at_once = length <= _AT_ONCE_JSON and len(body) <= _AT_ONCE_BODY
        request = read_request(*arguments) if at_once else await self._elsewhere(read_request, *arguments)
        read = time.perf_counter_ns()
        outcome = await self.run(served, request, at_once, scope)
        ran = time.perf_counter_ns()
        size = sum(array.nbytes for array in outcome.outputs.values())
        parts = (served.name, served.version, request.id, outcome.outputs, request.wanted, served.manifest)
        written = write_response(*parts) if size <= _AT_ONCE_JSON * 4 else await self._elsewhere(write_response, *parts)
        reply = await self._reply(written, headers.get(b"accept-encoding"))
        self.count(served, request.rows, outcome, read - began, time.perf_counter_ns() - ran)
        return reply

    async def run(self, served: Served, request: Request, at_once: bool, scope: Any) -> Outcome:
        """Queue a request and wait for its outcome; a client that goes away takes it out of the queue."""
        timeout = min(request.timeout or self.limits.wait_seconds, self.limits.wait_seconds)
        submit = served.submit
        future = submit(request.arrays, timeout) if at_once else await self._elsewhere(submit, request.arrays, timeout)
        waiter = self._bridge.wait(future)
        scope["engineworks.cancel"] = waiter.cancel
        outcome: Outcome = await waiter
        return outcome

    async def infer_tensors(
        self, served: Served, content: dict[str, Any], rest: memoryview, remaining: float | None
    ) -> tuple[Outcome, Request]:
        """Run a request that came by gRPC: its JSON and bytes, and the seconds that its client still waits."""
        began = time.perf_counter_ns()
        at_once = len(rest) <= _AT_ONCE_BODY and not any("data" in item for item in content["inputs"])
        arguments = (content, rest, served.manifest, served.rules)
        request = request_of(*arguments) if at_once else await self._elsewhere(request_of, *arguments)
        if remaining is not None:
            request = replace(request, timeout=min(request.timeout or remaining, max(remaining, 0.001)))
        read = time.perf_counter_ns()
        outcome = await self.run(served, request, at_once, {})
        self.count(served, request.rows, outcome, read - began, 0)
        return outcome, request

    def count(self, served: Served, rows: int, outcome: Outcome, read_ns: int, write_ns: int) -> None:
        """Count a request that was answered."""
        served.measure.answered(rows, (read_ns, outcome.queue_ns, outcome.infer_ns, write_ns))
        self.counters(served).answered(rows, outcome.queue_ns / 1e9, outcome.infer_ns / 1e9)

    async def classify(self, served: Served, body: bytes, k: int, scope: Any) -> Reply:
        """Answer ``POST /v2/models/M/classify``: the k best classes of the picture that is the body."""
        began = time.perf_counter_ns()
        try:
            recipe = served.session.preprocessing
        except BundleError as error:
            raise bad("the model is no classifier of pictures. Send tensors to infer.") from error
        assert recipe
        batch = await self._elsewhere(_prepared, served, body, self.limits.pixels)
        request = Request("", padded_picture(served, batch), 1, (), None)
        read = time.perf_counter_ns()
        outcome = await self.run(served, request, True, scope)
        ran = time.perf_counter_ns()
        m = served.manifest
        found = predictions(outcome.outputs[m.outputs[0].name][0], k, m.scores, m.labels, served.name)
        content = {
            "model_name": served.name,
            "model_version": served.version,
            "predictions": [{"label": one.label, "index": one.index, "probability": one.probability} for one in found],
        }
        self.count(served, 1, outcome, read - began, time.perf_counter_ns() - ran)
        return json_reply(content)

    async def _reply(self, written: tuple[bytes, int | None], accepted: bytes | None) -> Reply:
        body, length = written
        headers: Headers = []
        if length is not None:
            headers.append((b"inference-header-content-length", b"%d" % length))
        if accepted is not None and len(body) > 1024 and (b"gzip" in accepted or b"deflate" in accepted):
            body, encoding = await self._elsewhere(deflate, body, accepted)
            if encoding:
                headers.append((b"content-encoding", encoding))
        return Reply(200, body, JSON if length is None else b"application/octet-stream", headers)

    async def _elsewhere(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _prepared(served: Served, body: bytes, most: int) -> Any:
    """Decode a picture, its size looked at first, and prepare it as the bundle says."""
    import io

    from PIL import Image

    try:
        image = Image.open(io.BytesIO(body), formats=_PICTURES)
    except Exception as error:  # on damaged data Pillow's decoders raise whatever comes
        raise bad(f"expected a picture ({', '.join(_PICTURES)}) as the body, got something else.") from error
    with image:
        if image.width * image.height > most:
            raise Refusal(
                413, "too_large", f"expected a picture of at most {most} pixels, got {image.width}×{image.height}."
            )
        return served.session.preprocess(image)
