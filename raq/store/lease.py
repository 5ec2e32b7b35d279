"""A lease of a folder at an address: one run writes there, and a run that lost it notices. Neither torch nor ray."""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from raq.errors import RaqError, UserError
from raq.store.object_storage import ANSWER_TIMEOUT_S, Storage, StorageError, notify

RENEW_S, SETTLE_S = 10.0, 3.0
LEASE_S = ANSWER_TIMEOUT_S + 3 * RENEW_S  # one that waits out a silence still renews in time
LOCK = ".lock"


@dataclass(frozen=True)
class Lease:
    """The lease of one folder; `lost` is set when another run has taken it."""

    storage: Storage
    lost: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for one writer. UserError if another one lives: it renews its lock, a dead one does not.

        Clocks of several machines are not compared: a lock that is there is watched for LEASE_S. Of two that start at
        the same moment the one stays whose lock is there SETTLE_S later. One whose lock was taken nevertheless, as it
        could not renew it in time, publishes nothing more: see `check`.
        """
        storage, own = self.storage, uuid.uuid4().hex
        in_use = UserError(
            f"{storage.uri}: another raq run is writing here", "wait for it, or give another place with --results"
        )
        before = storage.read(LOCK)
        if before is not None:
            notify(f"{storage.uri} is locked: watching for {LEASE_S:.0f} s whether its writer lives")
            time.sleep(LEASE_S)
            if storage.read(LOCK) not in (None, before):
                raise in_use
        storage.write(LOCK, f"{own} 0".encode())
        time.sleep(SETTLE_S)
        if not (storage.read(LOCK) or b"").startswith(own.encode()):
            raise in_use
        ended = threading.Event()
        self.lost.clear()
        thread = threading.Thread(target=self._renew, args=(own, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(2 * ANSWER_TIMEOUT_S)
            with suppress(RaqError):
                if self._is_held_by(own):
                    storage.delete(LOCK)
        self.check()

    def check(self) -> None:
        """StorageError if another run has taken the folder from this one."""
        if self.lost.is_set():
            raise StorageError(
                f"{self.storage.uri}: another raq run has taken over, as this one could not renew its lock in time",
                "run again: finished stages are kept",
            )

    def _is_held_by(self, own: str) -> bool:
        return (self.storage.read(LOCK) or own.encode()).startswith(own.encode())

    def _renew(self, own: str, ended: threading.Event) -> None:
        count = 0
        while not ended.wait(RENEW_S):
            count += 1
            with suppress(RaqError):  # the run's own reads and writes say that the storage is lost
                if not self._is_held_by(own):
                    self.lost.set()
                    return
                self.storage.write(LOCK, f"{own} {count}".encode())
