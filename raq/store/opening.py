"""Which store results are in: a folder's, or that of an address."""

import hashlib
import uuid
from pathlib import Path

from raq.store.local import Store
from raq.store.object_storage import Storage, check_address, is_address
from raq.store.remote import ADDRESS, RemoteStore


def open_store(results: "str | Path") -> Store:
    """The store in a folder, or at an address (`s3://bucket/folder`); UserError for an address that is none."""
    if not is_address(str(results)):
        return Store(Path(results).expanduser().resolve())
    from raq.environment import cache_folder

    address = str(results).rstrip("/")
    check_address(address)
    root = cache_folder() / "stores" / hashlib.sha256(address.encode()).hexdigest()[:24]
    root.mkdir(parents=True, exist_ok=True)
    if not (root / ADDRESS).is_file():
        scratch = root / f".{uuid.uuid4().hex}"
        scratch.write_text(address)
        scratch.replace(root / ADDRESS)
    return RemoteStore(root, Storage(address))


def store_of(run_folder: Path) -> Store:
    """The store that a run's folder is in."""
    from raq.environment import cache_folder

    root = run_folder.parent.parent
    ours = root.resolve().parent == (cache_folder() / "stores").resolve()  # in a stranger's folder it says nothing
    return open_store((root / ADDRESS).read_text()) if ours and (root / ADDRESS).is_file() else Store(root)
