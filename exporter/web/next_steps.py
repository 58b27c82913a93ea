"""What to check while an account is not ok. The pages and `poll` say the same."""

from collections.abc import Mapping

from exporter.model import AccountState

WHAT_TO_CHECK: Mapping[AccountState, str] = {
    AccountState.DENIED: "check the access key, its permissions (RAM policy), the subscription and this machine's"
    " clock",
    AccountState.UNREACHABLE: "check the network, DNS, the proxy (HTTPS_PROXY), certificates (SSL_CERT_FILE) and the"
    " endpoint; if the code is http_5xx or InternalError, it is a fault of the API: wait",
    AccountState.THROTTLED: "check what else uses this access key, or lower qps",
}
"""By state; without OK."""
