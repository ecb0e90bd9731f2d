"""Simple working files for what stands around Forebay: nginx, systemd, Caddy."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["STOP_GRACE_S", "Facts", "render"]

STOP_GRACE_S = 35
"""What a stop takes at most beyond the drain: gateways 5 s more, then workers 12 s, then a
private store 10 s, and what does not end by then is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the files are filled with; paths are absolute."""

    host: str
    port: int
    program: str
    folder: str
    data_dir: str
    user: str
    drain_s: float


NGINX = """\
# nginx in front of Forebay. Put this file into conf.d/ (inside the http block).
# Put the name people use into server.allowed_hosts; from then on every request needs a key
# (`forebay keys create`), because a request through nginx comes from this machine.
# `forebay doctor --url http://NAME` says whether everything gets through at once.
map $http_upgrade $forebay_connection {{
    default upgrade;
    ''      '';
}}
upstream forebay {{
    server {address};
    keepalive 64;
}}

# The console and every protocol.
server {{
    listen 80;
    server_name _;
{PASS}
    location / {{
        proxy_pass http://forebay;
    }}
}}

# The port that notebook front ends hard-code. They are pages of other origins, so they are
# told that they may come, as Forebay's own notebook port would tell them. Forebay itself must
# not hold this port then: no `--compat notebook`, or another compat.notebook_port.
server {{
    listen 18600;
    server_name _;
{PASS}
    proxy_set_header Origin "";
    proxy_hide_header Access-Control-Allow-Origin;
    add_header Access-Control-Allow-Origin * always;
    add_header Access-Control-Expose-Headers "X-Forebay-Stream, Server-Timing" always;
    location / {{
        if ($request_method = OPTIONS) {{
            add_header Access-Control-Allow-Origin *;
            add_header Access-Control-Allow-Methods "GET, POST, PUT, PATCH, DELETE, OPTIONS";
            add_header Access-Control-Allow-Headers
                       "authorization, content-type, x-forebay-stream, last-event-id";
            add_header Access-Control-Max-Age 600;
            return 204;
        }}
        proxy_pass http://forebay;
    }}
}}
"""

NGINX_PASS = """\
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $forebay_connection;
    proxy_set_header X-Forwarded-For $remote_addr;
    # Streams: pass every piece on at once, and outlast the quietest of them.
    proxy_buffering off;
    proxy_request_buffering off;
    proxy_cache off;
    gzip off;
    proxy_connect_timeout 10s;
    proxy_read_timeout 3600s;
    proxy_send_timeout 3600s;
    # Each path has a limit of its own, which Forebay applies before it reads a body.
    client_max_body_size 0;
"""

CADDY = """\
# Caddy in front of Forebay. Replace :80 by your domain for automatic HTTPS.
# Put that domain into server.allowed_hosts; from then on every request needs a key
# (`forebay keys create`), because a request through Caddy comes from this machine.
:80 {{
	reverse_proxy {address} {{
		# Streams: pass every piece on at once.
		flush_interval -1
	}}
}}

# The port that notebook front ends hard-code. They are pages of other origins, so they are
# told that they may come. Forebay itself must not hold this port then: no `--compat
# notebook`, or another compat.notebook_port.
:18600 {{
	@preflight method OPTIONS
	handle @preflight {{
		header Access-Control-Allow-Origin *
		header Access-Control-Allow-Methods "GET, POST, PUT, PATCH, DELETE, OPTIONS"
		header Access-Control-Allow-Headers "authorization, content-type, x-forebay-stream, last-event-id"
		header Access-Control-Max-Age 600
		respond 204
	}}
	handle {{
		reverse_proxy {address} {{
			flush_interval -1
			header_up -Origin
			header_down Access-Control-Allow-Origin *
			header_down Access-Control-Expose-Headers "X-Forebay-Stream, Server-Timing"
		}}
	}}
}}
"""

SYSTEMD = """\
# /etc/systemd/system/forebay.service
[Unit]
Description=Forebay model gateway
After=network.target network-online.target
Wants=network-online.target

[Service]
Type=simple
ExecStart="{program}" serve --data-dir "{data_dir}"
WorkingDirectory={folder}
User={user}
Environment=PYTHONUNBUFFERED=1
Restart=always
RestartSec=3
# 2: a wrong setting. 78: a port, a key or an engine lacks. Starting again would not help.
RestartPreventExitStatus=2 78
KillMode=mixed
KillSignal=SIGTERM
# server.drain_s ({drain_s:g} s), then workers and a store have their time
TimeoutStopSec={stop_s}
LimitNOFILE=65536
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""

_FILES = {"nginx": NGINX, "caddy": CADDY, "systemd": SYSTEMD}


def render(which: str, facts: Facts) -> str:
    """The file ``which`` (nginx, caddy or systemd) for these facts."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(facts.host, facts.host)
    return _FILES[which].format(
        PASS=NGINX_PASS,
        address=f"[{host}]:{facts.port}" if ":" in host else f"{host}:{facts.port}",
        program=_unit(facts.program),
        folder=_unit(facts.folder),
        data_dir=_unit(facts.data_dir),
        user=facts.user,
        drain_s=facts.drain_s,
        stop_s=math.ceil(facts.drain_s) + STOP_GRACE_S,
    )


def _unit(path: str) -> str:
    """``path`` as a unit file takes it: a percent sign begins a specifier there."""
    return path.replace("%", "%%")
