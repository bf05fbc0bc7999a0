"""Signs requests for files in buckets (AWS Signature Version 4)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit


@dataclass(frozen=True)
class Credentials:
    key_id: str
    secret: str
    session_token: str | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Credentials | None:
        key_id, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
        return cls(key_id, secret, environ.get("AWS_SESSION_TOKEN")) if key_id and secret else None


def signed(
    url: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    credentials: Credentials | None,
    region: str,
    now: datetime | None = None,
) -> dict[str, str]:
    """`headers` of a GET, and those that sign it; without credentials nothing is added.

    `url` is quoted and has no query. The body is empty.
    """
    if credentials is None:
        return dict(headers)
    place = urlsplit(url)
    time = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    payload = hashlib.sha256(b"").hexdigest()
    made = {**headers, "x-amz-date": time, "x-amz-content-sha256": payload}
    if credentials.session_token is not None:
        made["x-amz-security-token"] = credentials.session_token
    lower = {name.lower(): value.strip() for name, value in {**made, "host": place.netloc}.items()}
    names = ";".join(sorted(lower))
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items())
    canonical = "\n".join(
        [
            "GET",
            place.path or "/",
            "&".join(f"{name}={value}" for name, value in pairs),
            *(f"{name}:{lower[name]}" for name in sorted(lower)),
            "",
            names,
            payload,
        ]
    )
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{credentials.secret}".encode()
    for part in (time[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={credentials.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return {**made, "Authorization": authorization}
