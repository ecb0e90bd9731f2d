"""Simple working files for what stands around Forebay: nginx, systemd, Caddy."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Facts", "render"]


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
map $http_upgrade $forebay_connection {{
    default upgrade;
    ''      '';
}}
upstream forebay {{
    server {address};
    keepalive 32;
}}
server {{
    listen 80;
    server_name _;
    client_max_body_size 50m;

    location / {{
        proxy_pass http://forebay;
        proxy_http_version 1.1;
        proxy_set_header Host $host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $forebay_connection;
        # Believed where server.trusted_proxies lists nginx's own address.
        proxy_set_header X-Forwarded-For $remote_addr;
        # Streams: pass every piece on at once, and outlast the quietest of them.
        proxy_buffering off;
        proxy_request_buffering off;
        proxy_cache off;
        gzip off;
        proxy_connect_timeout 10s;
        proxy_read_timeout 3600s;
        proxy_send_timeout 3600s;
    }}
}}
"""

CADDY = """\
# Caddy in front of Forebay. Replace :80 by your domain for automatic HTTPS.
# Put that domain into server.allowed_hosts; from then on every request needs a key
# (`forebay keys create`), because a request through Caddy comes from this machine.
:80 {{
    request_body {{
        max_size 50MB
    }}
    reverse_proxy {address} {{
        # Streams: pass every piece on at once.
        flush_interval -1
    }}
}}
"""

SYSTEMD = """\
# /etc/systemd/system/forebay.service
[Unit]
Description=Forebay model gateway
After=network-online.target
Wants=network-online.target

[Service]
ExecStart="{program}" serve --data-dir "{data_dir}"
WorkingDirectory={folder}
User={user}
Restart=on-failure
RestartSec=2
# 2: a wrong setting. 78: a port, a key or an engine lacks. Starting again would not help.
RestartPreventExitStatus=2 78
KillMode=mixed
KillSignal=SIGTERM
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
    host = "127.0.0.1" if facts.host in {"0.0.0.0", "::"} else facts.host
    return _FILES[which].format(
        address=f"[{host}]:{facts.port}" if ":" in host else f"{host}:{facts.port}",
        program=facts.program,
        folder=facts.folder,
        data_dir=facts.data_dir,
        user=facts.user,
        stop_s=int(facts.drain_s) + 10,
    )
