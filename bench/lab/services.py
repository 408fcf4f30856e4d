"""The servers of the lab: nginx, dnsmasq, sshd, chronyd, iperf3 and iodined, each in its host's namespace.

Always true
  - Configuration, keys, certificates and content are made at run time in the work directory and thrown away.
  - Content is made from the seed; no file of this machine is ever served, copied or uploaded.
  - All servers are started by the main thread: they live until the lab is taken down (see Lab.spawn).
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from bench.lab.topology import HOSTS, RESOLVER, Lab, LabError, host_command

PAGES = {"index.html": 2_000, "news.html": 4_500, "about.html": 1_200, "shop.html": 7_500, "manual.html": 20_000}
IMAGES = {"logo.png": 2_500, "photo.jpg": 9_000}
PACKAGES = {"tool.deb": 22_000, "list.txt": 90_000}
TUNNEL_PASSWORD = "lab"
NEWER_TLS = ("site", "cloud", "drop2")  # the others speak TLS 1.2, where a sensor sees the certificate
VOCABULARY = (
    "account address advice annual answer archive article autumn balance branch bridge budget calendar catalogue "
    "charter city client coast column committee copper council course customer delivery department detail district "
    "engine estate evening example exchange exhibit factory family ferry figure finance forest garden glass guide "
    "harbour history holiday idea index island journal kitchen ladder letter library lighthouse manager market "
    "meadow member meeting model morning museum network notice office orchard order parcel payment people picture "
    "plan platform policy product project quarter question railway record region report request river road room "
    "season service signal station store street student summary supplier system table ticket timber town trade "
    "train travel tunnel valley value village visit water weather window winter workshop year"
)
WORDS = VOCABULARY.split()

NGINX = """worker_processes 1; daemon off; user root; pid {dir}/nginx.pid; error_log {dir}/error.log crit;
events {{ worker_connections 1024; }}
http {{
    access_log off; default_type application/octet-stream; client_max_body_size 16m; keepalive_timeout 20;
    types {{ text/html html; text/plain txt; image/png png; image/jpeg jpg; application/json json; }}
    client_header_timeout 25; client_body_timeout 25; server_tokens {tokens};
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
    uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
    server {{
        {listen}
        ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem; ssl_protocols {protocols};
        root {dir}/www;
        location / {{ index index.html; }}
        location /search {{ try_files /shop.html =404; }}
        location /product {{ try_files /about.html =404; }}
        location /login {{ try_files /about.html =404; error_page 405 =401 /about.html; }}
        location /api/ {{ default_type application/json; return 200 '{{"ok":true,"next":60,"task":"{token}"}}'; }}
        location /upload/ {{ dav_methods PUT; create_full_put_path on; }}
    }}
}}
"""

SSHD = """Port 22
ListenAddress 0.0.0.0
HostKey {dir}/host_key
AuthorizedKeysFile {dir}/authorized
PidFile {dir}/sshd.pid
UsePAM no
UseDNS no
StrictModes no
PasswordAuthentication yes
PermitRootLogin prohibit-password
MaxStartups 100
LoginGraceTime 20
PrintMotd no
PrintLastLog no
Subsystem sftp internal-sftp
"""

CHRONYD = "local stratum 3\nallow 192.0.2.0/24\ncmdport 0\nbindcmdaddress /\npidfile {dir}/chronyd.pid\n"
CHRONY_CLIENT = (
    "server 198.51.100.123 iburst minpoll 4 maxpoll 4\nport 0\ncmdport 0\nbindcmdaddress /\n"
    "pidfile {dir}/chrony-client.pid\n"
)


def text(rng: random.Random, size: int) -> str:
    lines: list[str] = []
    total = 0
    while total < size:
        line = " ".join(rng.choices(WORDS, k=11))
        lines.append(f"<p>{line}</p>")
        total += len(line) + 8
    return "<!doctype html><title>lab</title>\n" + "\n".join(lines) + "\n"


class Services:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.rng = random.Random(f"{lab.seed}-services")
        self.key = lab.work / "client_key"
        self._started: list[tuple[str, str, subprocess.Popen[bytes]]] = []

    def dir(self, host: str) -> Path:
        path = self.lab.work / "hosts" / host
        path.mkdir(parents=True, exist_ok=True)
        return path

    def start(self) -> None:
        host_command(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(self.key)])
        self.nginx("web", plain=(80,), tls=(443,), images=True)
        self.nginx("app", plain=(80, 8080), tls=(8443,))
        self.nginx("files", plain=(80,))
        self.nginx("db", plain=(8086,))
        self.nginx("printer", plain=(80, 631))
        self.nginx("site", plain=(80,), tls=(443,), images=True)
        self.nginx("mirror", plain=(80,), packages=True)
        self.nginx("cloud", plain=(80,), tls=(443,))
        self.nginx("c2a", plain=(80, 8000), hidden=True)
        self.nginx("c2b", plain=(80,), tls=(8443,), hidden=True)
        self.nginx("drop1", plain=(80,), tls=(443,), hidden=True)
        self.nginx("drop2", plain=(80,), tls=(443,), hidden=True)
        for host in ("web", "app", "files", "db", "cloud"):
            self.sshd(host)
        self.resolvers()
        self._serve("ntp", ["chronyd", "-x", "-d", "-U", "-u", "root", "-f", self._conf("ntp", CHRONYD)])
        self._serve("speed", ["iperf3", "-s", "-p", "5201"])
        for host, inner, domain in (("tun1", "203.0.113.241", "t1.example"), ("tun2", "203.0.113.225", "t2.example")):
            ip = HOSTS[host].ip
            tunnel = ["iodined", "-f", "-c", "-P", TUNNEL_PASSWORD, "-l", ip, f"{inner}/28", domain]
            self._serve(host, tunnel)
            data = domain.replace("t", "d", 1)
            self.dnsmasq(host, HOSTS[host].more[0], [f"--address=/{data}/{ip}", f"--local=/{data}/"])
        self.lab.pause(1.5)
        self._alive()

    def chrony_client(self, host: str) -> list[str]:
        return ["chronyd", "-x", "-d", "-U", "-u", "root", "-f", self._conf(host, CHRONY_CLIENT)]

    def _conf(self, host: str, template: str) -> str:
        path = self.dir(host) / f"{len(template)}.conf"
        path.write_text(template.format(dir=self.dir(host)))
        return str(path)

    def _serve(self, host: str, argv: list[str]) -> None:
        process = self.lab.spawn(host, argv, log=self.lab.work / f"{host}-server.log")
        self._started.append((host, argv[0], process))

    def _alive(self) -> None:
        for host, program, process in self._started:
            if process.poll() is not None:
                log = (self.lab.work / f"{host}-server.log").read_text(errors="replace")
                raise LabError(f"{program} on {host} ended at once: {log[-400:]}")

    def nginx(
        self,
        host: str,
        plain: tuple[int, ...],
        tls: tuple[int, ...] = (),
        *,
        images: bool = False,
        packages: bool = False,
        hidden: bool = False,
    ) -> None:
        home = self.dir(host)
        www = home / "www"
        (www / "upload").mkdir(parents=True)
        for name, size in PAGES.items():
            (www / name).write_text(text(self.rng, 700 if hidden else size))
        if images:
            for name, size in IMAGES.items():
                (www / name).write_bytes(self.rng.randbytes(size))
        if packages:
            (www / "tool.deb").write_bytes(self.rng.randbytes(PACKAGES["tool.deb"]))
            (www / "list.txt").write_text(text(self.rng, PACKAGES["list.txt"]))
        name = f"{host}.example"
        certificate = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(home / "key.pem"), "-out", str(home / "cert.pem"), "-days", "30"]
        host_command([*certificate, *files, "-subj", f"/O=Lab/CN={name}", "-addext", f"subjectAltName=DNS:{name}"])
        sixth = HOSTS[host].ip6 is not None
        listen = [f"listen {port};" + (f" listen [::]:{port};" if sixth else "") for port in plain]
        listen += [f"listen {port} ssl;" + (f" listen [::]:{port} ssl;" if sixth else "") for port in tls]
        token = self.rng.randbytes(8).hex()
        conf = home / "nginx.conf"
        tokens = "off" if hidden else "on"
        protocols = "TLSv1.3" if host in NEWER_TLS else "TLSv1.2"
        filled = NGINX.format(dir=home, listen=" ".join(listen), token=token, tokens=tokens, protocols=protocols)
        conf.write_text(filled)
        self._serve(host, ["nginx", "-c", str(conf), "-e", str(home / "error.log")])

    def sshd(self, host: str) -> None:
        home = self.dir(host)
        host_command(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host, "-f", str(home / "host_key")])
        (home / "authorized").write_text(self.key.with_suffix(".pub").read_text())
        conf = home / "sshd_config"
        conf.write_text(SSHD.format(dir=home))
        # `ip netns exec` gives a private mount namespace: /run and /var/log of the machine stay untouched.
        private = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log && mkdir -m 755 /run/sshd"
        self._serve(host, ["sh", "-c", f"{private} && exec /usr/sbin/sshd -D -e -f {conf}"])

    def dnsmasq(self, host: str, listen: str, options: list[str]) -> None:
        base = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--no-poll"]
        base += ["--user=root", "--group=root", "--pid-file=", "--bind-interfaces", "--except-interface=lo"]
        self._serve(host, [*base, *(f"--listen-address={a}" for a in listen.split(",")), *options])

    def resolvers(self) -> None:
        inside = [f"--host-record={n}.corp.example,{HOSTS[n].ip}" for n in ("app", "files", "db", "printer")]
        inside.append(f"--host-record=www.corp.example,{HOSTS['web'].ip},{HOSTS['web'].ip6}")
        tunnels = [f"--server=/t{n}.example/{HOSTS[f'tun{n}'].ip}" for n in (1, 2)]
        tunnels += [f"--server=/d{n}.example/{HOSTS[f'tun{n}'].more[0]}" for n in (1, 2)]
        upstream = [f"--server={HOSTS['udns'].ip}", "--local=/corp.example/", "--local-ttl=20", "--cache-size=60"]
        self.dnsmasq("dns", f"{RESOLVER},{HOSTS['dns'].ip6}", [*inside, *tunnels, *upstream])
        site = HOSTS["site"]
        names = [f"--host-record=www.site.example,{site.ip},{site.ip6}", f"--host-record=site.example,{site.ip}"]
        names += [f"--host-record={n}.example,{HOSTS[n].ip}" for n in ("mirror", "cloud", "speed", "ntp")]
        names += [f"--address=/cdn.example/{HOSTS['mirror'].ip}", "--txt-record=site.example,v=spf1 -all"]
        self.dnsmasq("udns", HOSTS["udns"].ip, [*names, "--local=/example/", "--local-ttl=8", "--local=//"])
