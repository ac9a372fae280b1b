"""What is wrong with the configuration of a proxy."""

from __future__ import annotations

import pytest
from proxies import RECIPES

from wsthread.doctor.proxies import judge_proxy, seconds

NGINX, HAPROXY = ((RECIPES / name).read_text() for name in ("nginx.conf", "haproxy.cfg"))


@pytest.mark.parametrize("text", [
    NGINX, NGINX.replace("listen 443", "listen 8443").replace("$host;", "$host:$server_port;"), HAPROXY, "",
    "user root; events {}"])
def test_good(text: str) -> None:
    assert judge_proxy(text) == []


@pytest.mark.parametrize(("name", "text", "old", "new"), [
    ("hard-stop", NGINX, "map $", "worker_shutdown_timeout 10s; map $"),
    ("idle-cut", NGINX, "proxy_read_timeout 60s;", "proxy_read_timeout 15;"),
    ("port-dropped", NGINX, "listen 443 ssl http2;", "listen 127.0.0.1:8443 ssl;"),
    ("port-dropped", NGINX.replace("listen 80", "listen [::]:8080"), "proxy_set_header Host", "uwsgi_param HTTP_HOST"),
    ("upgrade-lost", NGINX, "proxy_set_header Upgrade", "# proxy_set_header Upgrade"),
    ("http-1.0", NGINX, "proxy_http_version 1.1;", "proxy_http_version 1.0;"),
    ("hard-stop", HAPROXY, "maxconn 20000", "hard-stop-after 30s"),
    ("idle-cut", HAPROXY, "timeout tunnel 1h", "timeout tunnel 10000"),
    ("server-maxconn", HAPROXY, "server one 127.0.0.1:8000", "server one 127.0.0.1:8000 maxconn 100"),
])
def test_faults(name: str, text: str, old: str, new: str) -> None:
    assert old in text
    found, = judge_proxy(text.replace(old, new))
    assert found.name == name
    if name not in ("upgrade-lost", "http-1.0"):  # There the line is missing.
        told = "$host;" if name == "port-dropped" else old
        number = next(number for number, line in enumerate(text.splitlines(), 1) if told in line)
        assert found.symptom.startswith(f"Line {number}: ")


def test_without_tunnel() -> None:
    """Then the timeouts of both sides count; and an application may send Pings more often."""
    text = HAPROXY.replace("timeout tunnel 1h", "").replace("60s", "20s")
    assert [one.name for one in judge_proxy(text)] == ["idle-cut", "idle-cut"]
    assert judge_proxy(text, 5) == []


@pytest.mark.parametrize(("text", "unit", "expected"), [
    ("60s", "", 60), ("60", "", 60), ("5000", "ms", 5), ("1m 30s", "", 90), ("1h", "ms", 3600), ("10ms", "", 0.01),
    ("$timeout", "", 0)])
def test_seconds(text: str, unit: str, expected: float) -> None:
    assert seconds(text, unit) == pytest.approx(expected)
