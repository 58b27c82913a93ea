"""The proxy of an endpoint, and the errors in environment variables for proxies and TLS."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import trustme
from configured import load

from exporter.config.environment import proxy_of
from exporter.config.problems import ConfigError

KEY = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAIexample", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "example-secret"}
PROXY = "http://proxy.example:8080"
API = "https://cams.ap-southeast-1.aliyuncs.com"


def problems(environ: Mapping[str, str], path: Path | None = None) -> list[str]:
    try:
        load(path, {**KEY, **environ})
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    ("entry", "endpoint"),
    [
        ("*", API),
        ("*", "https://10.1.2.3"),
        ("aliyuncs.com", API),
        (".aliyuncs.com", API),
        ("*.aliyuncs.com", API),
        ("aliyuncs.com", "https://aliyuncs.com"),
        (".aliyuncs.com", "https://aliyuncs.com"),
        ("ALIYUNCS.com.", API),
        ("cams.ap-southeast-1.aliyuncs.com:443", API),
        ("*.aliyuncs.com:443", API),
        ("cams.example:8443", "https://cams.example:8443"),
        ("*:443", API),
        ("10.1.2.3", "https://10.1.2.3"),
        ("10.1.2.3:443", "https://10.1.2.3"),
        ("10.0.0.0/8", "https://10.1.2.3"),
        ("10.1.2.3/8", "https://10.1.2.3"),
        ("fd00::1", "https://[fd00::1]"),
        ("FD00:0::1", "https://[fd00::1]"),
        ("[fd00::1]", "https://[fd00::1]"),
        ("[fd00::1]:443", "https://[fd00::1]"),
        ("fd00::/8", "https://[fd00::1]"),
        ("::/0", "https://[fd00::1]"),
        ("localhost, ::1/128 ,\taliyuncs.com", API),
        ("localhost ::1 aliyuncs.com", API),
        (",,aliyuncs.com,", API),
    ],
)
def test_an_endpoint_in_the_no_proxy_variable_has_no_proxy(entry: str, endpoint: str) -> None:
    assert proxy_of(endpoint, {"HTTPS_PROXY": PROXY, "NO_PROXY": entry}) is None


@pytest.mark.parametrize(
    ("entry", "endpoint"),
    [
        ("", API),
        ("example.com", API),
        ("yuncs.com", API),
        ("*yuncs.com", API),
        ("www.aliyuncs.com", "https://aliyuncs.com"),
        ("aliyuncs.com:8443", API),
        ("aliyuncs.com:443", "https://aliyuncs.com:8443"),
        ("*:80", API),
        ("10.0.0.0/8", "https://11.1.2.3"),
        ("10.0.0.0/8", "https://[fd00::1]"),
        ("2.3", "https://10.1.2.3"),
        ("10.1.2.3:80", "https://10.1.2.3"),
        ("10.1.2.3", "https://10.1.2.3.example"),
        ("[fd00::1]:8443", "https://[fd00::1]"),
        ("fd00::/8", API),
        ("::1/128", API),
        ("[::1]:443", API),
        ("::1", "https://[::2]"),
        (".", API),
        ("*.", API),
        (":443", API),
        ("10.0.0.0/33", "https://10.1.2.3"),
        ("[", API),
        ("http://[", API),
        ("\udcff", API),
        (":443" * 5000, API),
    ],
)
def test_an_endpoint_outside_the_no_proxy_variable_has_a_proxy(entry: str, endpoint: str) -> None:
    assert proxy_of(endpoint, {"HTTPS_PROXY": PROXY, "NO_PROXY": entry}) == PROXY
    assert problems({"HTTPS_PROXY": PROXY, "NO_PROXY": entry}) == []


@pytest.mark.parametrize(
    "endpoint", ["https://localhost", "http://127.0.0.1:10145", "http://[::1]", "https://127.9.9.9"]
)
def test_a_loopback_endpoint_has_no_proxy(endpoint: str) -> None:
    assert proxy_of(endpoint, {"HTTPS_PROXY": PROXY, "HTTP_PROXY": PROXY, "ALL_PROXY": PROXY}) is None


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTP_PROXY": PROXY}, None),
        ({"ALL_PROXY": PROXY}, PROXY),
        ({"all_proxy": PROXY}, PROXY),
        ({"https_proxy": PROXY, "HTTPS_PROXY": "http://other"}, PROXY),
        ({"HTTPS_PROXY": PROXY, "ALL_PROXY": "http://other"}, PROXY),
        ({"HTTPS_PROXY": "", "ALL_PROXY": PROXY}, PROXY),
        ({"https_proxy": "", "HTTPS_PROXY": PROXY}, None),
        ({"no_proxy": "", "NO_PROXY": "*", "HTTPS_PROXY": PROXY}, PROXY),
        ({"no_proxy": "*", "NO_PROXY": "", "HTTPS_PROXY": PROXY}, None),
        ({"HTTPS_PROXY": "proxy.example:8080"}, PROXY),
        ({"HTTPS_PROXY": " HTTP://proxy.example:8080/ "}, PROXY),
        ({"HTTPS_PROXY": "https://proxy.example"}, "https://proxy.example"),
        ({"HTTPS_PROXY": "http://[fd00::1]:8080"}, "http://[fd00::1]:8080"),
        ({"HTTPS_PROXY": "ops:a%40b:c@proxy_1:8080"}, "http://ops:a%40b:c@proxy_1:8080"),
    ],
)
def test_an_https_endpoint_uses_https_proxy_or_all_proxy(environ: Mapping[str, str], proxy: str | None) -> None:
    assert proxy_of(API, environ) == proxy
    assert problems(environ) == []


INVALID_PROXY = "expected a proxy such as http://proxy.example:8080, found text (not shown)"
UNSUPPORTED_SCHEME = "expected a proxy with http:// or https://"
RESERVED_CHARACTERS = (
    "expected percent-encoded reserved characters in user and password, such as %23 for #, found text (not shown)"
)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("http://ops:S3cr3tPw#9@proxy:8080", RESERVED_CHARACTERS),
        ("http://ops:S3cr3tPw/9@proxy:8080", RESERVED_CHARACTERS),
        ("http://ops:S3cr3tPw?9@proxy:8080", RESERVED_CHARACTERS),
        ("http://ops:S3cr3tPw@9@proxy:8080", RESERVED_CHARACTERS),
        ("http://ops:S3cr3tPw[9@proxy:8080", RESERVED_CHARACTERS),
        ("http://ops:S3cr3tPw%9@proxy:8080", RESERVED_CHARACTERS),
        ("http://ops:S3cr3tPw é@proxy:8080", RESERVED_CHARACTERS),
        ("ops:S3cr3tPw#9@proxy:8080", RESERVED_CHARACTERS),
        (
            "socks5://ops:S3cr3tPw@proxy:1080",
            f"{UNSUPPORTED_SCHEME}, found socks5://, which is not supported",
        ),
        ("SOCKS5h://proxy:1080", f"{UNSUPPORTED_SCHEME}, found socks5h://, which is not supported"),
        ("socks4a://proxy", f"{UNSUPPORTED_SCHEME}, found socks4a://, which is not supported"),
        ("S3cr3tPw://proxy", INVALID_PROXY),
        ("S3cr3tPw#9", INVALID_PROXY),
        ("http://", INVALID_PROXY),
        ("http://proxy:S3cr3tPw", INVALID_PROXY),
        ("http://proxy:0", INVALID_PROXY),
        ("http://proxy:65536", INVALID_PROXY),
        ("http://proxy:8080/S3cr3tPw", INVALID_PROXY),
        ("http://[::1", INVALID_PROXY),
        ("http://[proxy]:80", INVALID_PROXY),
        ("http://\udcff", INVALID_PROXY),
    ],
)
def test_an_invalid_proxy_is_an_error_that_does_not_show_the_value(name: str, value: str, problem: str) -> None:
    assert problems({name: value}) == [f"environment: {name}: {problem}"]


def test_errors_in_variables_and_errors_in_the_file_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "exporter.yml"
    path.write_text("accounts:\n  - {name: acme}\n  - {name: acme}\n")
    environ = {
        "HTTPS_PROXY": "http://a:b#c@d",
        "ALL_PROXY": "socks5://x",
        "SSL_CERT_FILE": "/nope",
        "SSLKEYLOGFILE": "/",
    }

    found = problems(environ, path)

    assert found[0] == f"{path}:3: accounts[1].name: duplicate account name 'acme' (first defined at {path}:2)"
    assert [line.partition(": expected")[0] for line in found[1:]] == [
        "environment: SSLKEYLOGFILE",
        "environment: SSL_CERT_FILE",
        "environment: HTTPS_PROXY",
        "environment: ALL_PROXY",
    ]


def test_if_all_endpoints_are_loopback_the_proxy_variables_are_not_checked(tmp_path: Path) -> None:
    path = tmp_path / "exporter.yml"
    path.write_text("accounts: [{name: acme, endpoint: 'http://127.0.0.1:10145'}]")

    assert problems({"HTTPS_PROXY": "socks5://x"}, path) == []


CERTIFICATE_FILE = "expected a readable file with PEM certificates, found: "
CERTIFICATE_DIRECTORY = "expected a certificate directory prepared with openssl rehash, found: "
KEY_LOG_FILE = "expected a writable file for TLS keys, found: "


@pytest.mark.parametrize(
    ("name", "file", "problem"),
    [
        ("SSL_CERT_FILE", "missing", f"{CERTIFICATE_FILE}No such file or directory"),
        ("SSL_CERT_FILE", "directory", f"{CERTIFICATE_FILE}a directory"),
        ("SSL_CERT_FILE", "fifo", f"{CERTIFICATE_FILE}a FIFO"),
        ("SSL_CERT_FILE", "loop", f"{CERTIFICATE_FILE}Too many levels of symbolic links"),
        ("SSL_CERT_FILE", "x" * 300, f"{CERTIFICATE_FILE}File name too long"),
        ("SSL_CERT_DIR", "missing", f"{CERTIFICATE_DIRECTORY}No such file or directory"),
        ("SSL_CERT_DIR", "fifo", f"{CERTIFICATE_DIRECTORY}Not a directory"),
        ("SSL_CERT_DIR", "directory", f"{CERTIFICATE_DIRECTORY}no file with a hashed name, such as 1a2b3c4d.0"),
        ("SSL_CERT_DIR", "missing:directory", f"{CERTIFICATE_DIRECTORY}no file with a hashed name, such as 1a2b3c4d.0"),
        ("SSLKEYLOGFILE", "missing/keys", f"{KEY_LOG_FILE}No such file or directory"),
        ("SSLKEYLOGFILE", "directory", f"{KEY_LOG_FILE}a directory"),
        ("SSLKEYLOGFILE", "fifo", f"{KEY_LOG_FILE}a FIFO"),
        ("SSLKEYLOGFILE", "/proc/tls-keys", f"{KEY_LOG_FILE}No such file or directory"),
    ],
)
def test_an_unusable_file_is_an_error_with_the_name_of_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("directory").mkdir()
    Path("loop").symlink_to("loop")
    os.mkfifo("fifo")

    assert problems({name: file}) == [f"environment: {name}: {problem}"]


def test_a_file_without_certificates_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no PEM")

    (problem,) = problems({"SSL_CERT_FILE": str(tmp_path / "ca.pem")})

    assert problem.startswith(f"environment: SSL_CERT_FILE: {CERTIFICATE_FILE}")
    assert "no certificate" in problem


def test_certificates_in_a_file_or_in_a_directory_are_accepted(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "0123abcd.0"))

    assert problems({"SSL_CERT_FILE": str(tmp_path / "0123abcd.0"), "SSL_CERT_DIR": "/not/used"}) == []
    assert problems({"SSL_CERT_DIR": f"/nope:{tmp_path}"}) == []
    assert problems({"SSL_CERT_FILE": "", "SSL_CERT_DIR": "", "SSLKEYLOGFILE": ""}) == []


def test_the_tls_key_log_file_can_be_a_new_file(tmp_path: Path) -> None:
    assert problems({"SSLKEYLOGFILE": str(tmp_path / "keys")}) == []
