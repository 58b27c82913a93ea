"""The signature, compared with test vectors of two official libraries."""

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.sources.cams.signing import Credentials, authorization, canonical_query

DATA = Path(__file__).parents[2] / "data"
VECTORS = json.loads((DATA / "signature-vectors.json").read_text())["vectors"]


def test_all_ten_vectors_are_read() -> None:
    assert len(VECTORS) == 10


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_signature_matches_the_official_libraries(vector: dict[str, Any]) -> None:
    credentials = Credentials(vector["access_key_id"], vector["access_key_secret"])
    query = canonical_query(vector["query"])

    signed = authorization(
        vector["method"], query, vector["headers"], vector["headers"]["x-acs-content-sha256"], credentials
    )

    assert query == vector["expected"]["canonical_query"]
    assert signed == vector["expected"]["authorization"]


def test_the_repr_of_credentials_has_no_secret() -> None:
    assert repr(Credentials("marked-id", "marked-secret", "marked-token")) == "Credentials()"


def test_secrets_are_listed_longest_first() -> None:
    assert Credentials("key", "secret", "key.token").secrets == ("key.token", "secret", "key")
