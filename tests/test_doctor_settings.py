"""What is wrong with a configuration of gunicorn."""

from __future__ import annotations

from typing import Any

import pytest

from wsthread.doctor.findings import Severity, all_is_well
from wsthread.doctor.settings import Settings, is_local, judge_settings

GOOD = Settings(worker_class="gthread", threads=16, app="app:app")
PUBLIC = ["0.0.0.0:8000"]


@pytest.mark.parametrize("changes", [
    {}, {"worker_class": "sync", "threads": 1},
    {"binds": ["unix:/run/a", "fd://3", "[::1]:80", "localhost:80"], "threads": 1},
    {"binds": PUBLIC}, {"graceful_timeout": 30, "timeout": 30}, {"timeout": 0, "graceful_timeout": 30},
    {"max_requests": 1000}, {"http_protocols": ["h1"]}, {"app": "app:app", "shadowed": frozenset({"app"})},
    {"as_module": True, "app": "chat:app", "shadowed": frozenset({"app"})},
    {"url": "ws://a/", "binds": PUBLIC}, {"url": "wss://a/"},
    {"url": "wss://a/", "binds": PUBLIC, "forwarded_allow_ips": ["*"]},
    {"url": "wss://a/", "binds": PUBLIC, "forwarded_allow_ips": ["127.0.0.1", "10.0.0.7"]},
])
def test_good(changes: dict[str, Any]) -> None:
    assert judge_settings(GOOD._replace(**changes)) == []


@pytest.mark.parametrize(("name", "severity", "changes"), [
    ("worker-class", Severity.FAULT, {"worker_class": "gevent"}),
    ("few-threads", Severity.WARNING, {"binds": PUBLIC, "threads": 2}),
    ("few-threads", Severity.WARNING, {"binds": [":8000"], "worker_class": "sync", "threads": 1}),
    ("workers", Severity.NOTE, {"workers": 2}),
    ("module-name", Severity.FAULT, {"as_module": True, "shadowed": frozenset({"app", "http"})}),
    ("graceful-timeout", Severity.WARNING, {"graceful_timeout": 31}),
    ("max-requests", Severity.WARNING, {"max_requests": 999}),
    ("tls-in-server", Severity.WARNING, {"is_tls": True}),
    ("http-2-only", Severity.FAULT, {"cleartext_http2": "prior-knowledge"}),
    ("http-2-only", Severity.FAULT, {"http_protocols": ["h2"]}),
    ("http-2", Severity.NOTE, {"http_protocols": ["h2", "h1"]}),
    ("proxy-protocol-on", Severity.NOTE, {"proxy_protocol": "auto"}),
    ("forwarded-allow-ips", Severity.WARNING, {"url": "wss://a/", "binds": PUBLIC}),
])
def test_faults(name: str, severity: Severity, changes: dict[str, Any]) -> None:
    found, = judge_settings(GOOD._replace(**changes))
    assert (found.name, found.severity) == (name, severity)
    assert all_is_well([found]) is (severity is Severity.NOTE)
    assert found.as_json() == {
        "name": name, "severity": severity.value, "hop": "WSGI server", "symptom": found.symptom,
        "remedy": found.remedy}


@pytest.mark.parametrize(("bind", "local"), [
    ("127.0.0.1:80", True), ("[::1]:80", True), ("localhost", True), ("0.0.0.0:80", False), (":80", False),
    ("[::]:80", False), ("192.168.1.127:80", False)])
def test_is_local(bind: str, local: bool) -> None:
    assert is_local(bind) is local
