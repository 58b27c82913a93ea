"""What to check if an account is not ok, for the status pages and the command `poll`."""

from collections.abc import Mapping

from exporter.model import AccountState

ACCOUNT_NEXT_STEPS: Mapping[AccountState, str] = {
    AccountState.DENIED: "check the access key, its permissions (RAM policy), the subscription and the system time"
    " of the exporter's host",
    AccountState.UNREACHABLE: "check the network, DNS, the proxy (HTTPS_PROXY), certificates (SSL_CERT_FILE) and the"
    " endpoint; if the code is http_5xx or InternalError, the problem is in the API: wait",
    AccountState.THROTTLED: "check which other programs use this access key, or lower qps",
}
"""Next steps for each account state except OK."""
