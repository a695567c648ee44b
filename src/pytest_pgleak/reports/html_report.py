"""The report as one HTML page that needs nothing else; made with Jinja2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pytest_pgleak import __version__
from pytest_pgleak.reports.report import Report


def is_possible() -> bool:
    """Tell whether Jinja2 is installed, without importing it."""
    return importlib.util.find_spec("jinja2") is not None


def render(report: Report) -> str:
    """Make the text of the file."""
    from jinja2 import Environment, StrictUndefined

    source = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(report=report, version=__version__) + "\n"
