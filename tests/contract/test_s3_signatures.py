"""Requests to S3 are signed as Amazon says. The examples are those of the Amazon S3 API Reference, "Examples: Signature Calculations" (Signature Version 4)."""

from __future__ import annotations

import hashlib

import pytest

from ckp.hostkit.s3 import Credentials, authorization

pytestmark = pytest.mark.contract

KEY = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
EMPTY = hashlib.sha256(b"").hexdigest()
HEADERS = {"host": "examplebucket.s3.amazonaws.com", "x-amz-date": "20130524T000000Z"}
WELCOME = hashlib.sha256(b"Welcome to Amazon S3.").hexdigest()


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "signature"),
    [
        ("GET", "/test.txt", "", {"range": "bytes=0-9", "x-amz-content-sha256": EMPTY}, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        (
            "PUT",
            "/test%24file.text",
            "",
            {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-content-sha256": WELCOME, "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        ("GET", "/", "lifecycle=", {"x-amz-content-sha256": EMPTY}, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("GET", "/", "max-keys=2&prefix=J", {"x-amz-content-sha256": EMPTY}, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_the_published_examples_have_the_published_signatures(method: str, path: str, query: str, headers: dict[str, str], signature: str) -> None:
    found = authorization(method, path, query, {**HEADERS, **headers}, KEY, "us-east-1")
    names = ";".join(sorted({**HEADERS, **headers}))
    scope = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"
    assert found == f"AWS4-HMAC-SHA256 Credential={scope},SignedHeaders={names},Signature={signature}"
