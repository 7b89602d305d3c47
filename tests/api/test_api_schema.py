"""The OpenAPI description against the service: schemathesis makes up requests, right and wrong ones.
AGRI_CAE_CASES says how many for each route."""

import os
import random
from collections import Counter

import hostile
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from agri_cae.api.app import create_app
from agri_cae.api.settings import ApiSettings
from agri_cae.config import ServeConfig

pytestmark = pytest.mark.filterwarnings("ignore")
CASES = int(os.environ.get("AGRI_CAE_CASES", 20))
FILES = [data for _, data in hostile.seeds()]
PICTURES = st.one_of(
    st.sampled_from(FILES),
    st.builds(
        lambda data, seed: hostile.spoil(data, random.Random(seed)), st.sampled_from(FILES), st.integers(0, 10**6)
    ),
    st.binary(max_size=200),
)
for media in ("image/png", "image/jpeg", "image/tiff", "image/webp"):
    schemathesis.openapi.media_type(media, PICTURES)
schemathesis.openapi.format("binary", PICTURES)


def try_out(operation, count):
    "Make up requests for one operation, and count the statuses of the answers"
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

    @given(case=st.one_of(*(operation.as_strategy(generation_mode=m) for m in GenerationMode)))
    @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate],
              derandomize=True, database=None)
    def check(case):
        r = case.call()
        count[operation.label, r.status_code] += 1
        case.validate_response(r, checks=checks)

    check()


def test_only_what_is_described(box):
    "No 5xx, no status, type or body that is not described. The service has a tiny model, no keys and no rates."
    count = Counter()
    app = create_app(ApiSettings(serve=ServeConfig(model=box), models=(box,), monitor=False))
    with TestClient(app):
        for o in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations(): try_out(o.ok(), count)
    print(f"{sum(count.values())} cases", *(f"{k[0]} {k[1]}: {n}" for k, n in sorted(count.items())), sep="\n")
    assert {s for _, s in count} >= {200, 400} and len({o for o, _ in count}) >= 14
