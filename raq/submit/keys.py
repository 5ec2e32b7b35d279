"""Files that hold keys and passwords, which must not be sent to a cluster."""

import re
from contextlib import suppress
from pathlib import Path

KEY_NAMES = re.compile(
    r"^id_(rsa|dsa|ecdsa|ed25519)|\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|asc|gpg)$"
    r"|^\.?(netrc|npmrc|pypirc|pgpass|htpasswd)$"
    r"|(^|[._-])(tokens?|secrets?|passwords?|passwd|credentials?|keys?|api_?keys?|private_?keys?)([._-]|$)"
    r"|^(aws|kaggle)\.|^\.(env|s3cfg|boto|dockercfg|dockerconfigjson|git-credentials)",
    re.IGNORECASE,
)
KEY_FOLDERS = re.compile(r"^(secrets?|credentials?|private|\.ssh|\.aws|\.gnupg)$", re.IGNORECASE)
KEY_CONTENTS = re.compile(
    rb"-----BEGIN [A-Z ]{0,40}PRIVATE KEY|\bA[KS]IA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}|\bnpm_[A-Za-z0-9]{36}"
    rb"|aws_secret_access_key['\"]?\s{0,9}[=:]\s{0,9}['\"]?[A-Za-z0-9/+]{40}|\b[sr]k_live_[A-Za-z0-9]{16}"
    rb"|(?i:password|passwd)['\"]?\s{0,9}[:=]\s{0,9}(?:['\"][^'\"\s$<{]{6,64}['\"]|[^\s'\"$<{(.]{6,64}\s*(?:\n|\Z))"
    rb"|://[^\s:/@]{1,64}:[^\s:/@$<{]{3,64}@"
    rb"|\bgithub_pat_[A-Za-z0-9_]{30}|\bhf_[A-Za-z0-9]{30}|\bxox[abprs]-[A-Za-z0-9-]{10}|\bAIza[0-9A-Za-z_-]{35}"
    rb"|\bsk-[A-Za-z0-9_-]{20}|\bglpat-[A-Za-z0-9_-]{20}|\bya29\.[A-Za-z0-9_-]{20}"
    rb"|\beyJ[A-Za-z0-9_-]{10,200}\.eyJ[A-Za-z0-9_-]{10,2000}\."
)
CONTENT_LOOKED_AT = 4_000_000  # bytes of a file that is to be sent


def named_as_a_key(name: str) -> str | None:
    """Why a file looks like a key by its name; None if it does not. Names of Python files say nothing."""
    path = Path(name)
    if any(KEY_FOLDERS.match(part) for part in path.parts[:-1]):
        return "its folder is one for keys"
    return "its name is that of a key" if path.suffix != ".py" and KEY_NAMES.search(path.name) else None


def holds_a_key(file: Path) -> bool:
    """Whether the beginning of a file looks like a key or a password; False if it cannot be read."""
    with suppress(OSError), file.open("rb") as content:
        text = content.read(CONTENT_LOOKED_AT)
        return bool(KEY_CONTENTS.search(text) or KEY_CONTENTS.search(text.replace(b"\0", b"")))  # UTF-16 too
    return False
