"The page of the service describes all that an operator can set."

import html

import pytest

pytest.importorskip("fastapi")
from agri_cae.api.pages import settings_table
from agri_cae.monitoring.log import MonitorConfig


def test_the_settings_of_monitoring_are_described():
    table = settings_table()
    for name, field in MonitorConfig.model_fields.items():
        assert f"<code>AGRI_CAE_MONITOR_{name.upper()}</code></td><td>{html.escape(field.description)}</td>" in table


def test_defaults_are_those_that_run():
    row = next(r for r in settings_table().split("<tr>") if "AGRI_CAE_SERVE__STRENGTH" in r)
    assert "<td>auto</td>" in row
