"""The way to a cluster's dashboard: over TLS or to this machine, with the token that it asks for."""

import ipaddress
import logging
import os
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from raq.cluster.session import RAY_SETTINGS, refuse_credentials
from raq.errors import UserError, first_line
from raq.submit.job_log import failures

REQUEST_TIMEOUT_S = 60.0


def refuse_plain_http(address: str, insecure: bool) -> None:
    """UserError for plain HTTP to another machine: code, and the token that lets it run, would go in the open."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        host = parts.hostname or ""
    except ValueError as error:
        raise UserError(f"--address {address}: no address: {error}", "give http://HOST:8265, or HOST:8265") from None
    if _is_loopback(host):
        for name in ("NO_PROXY", "no_proxy"):  # else a proxy would be sent the code, and the token, in the open
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))
        return
    if parts.scheme != "http" or insecure:
        return
    raise UserError(
        f"--address {address}: plain HTTP to another machine, which anybody on the way can read and change",
        "use https://, a tunnel ('ray dashboard cluster.yaml' or ssh) to 127.0.0.1, or --insecure-http",
    )


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return False


def connected(address: str) -> Any:
    """A client of the cluster's job server; UserError if none answers there, or not to this token."""
    refuse_credentials(address)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):  # Ray would take them in place of what was asked for
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in RAY_SETTINGS.items() if name not in os.environ})
    os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"  # what is in the package was chosen
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"--address {address}: not the address of a cluster's dashboard", "give http://HOST:8265, or HOST:8265"
        )
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in (dashboard_sdk, sdk):  # they raise their own loggers to INFO
        module.logger.setLevel(logging.ERROR)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.ERROR)

    class Client(JobSubmissionClient):
        """Ray's, which waits for ever, with an end to its waits."""

        def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": REQUEST_TIMEOUT_S, **kwargs})

    try:
        return Client(url)
    except AuthenticationError as error:
        raise _refused(address) from error
    except failures() as error:
        first = first_line(error)
        raise UserError(
            f"--address {address}: no job server of Ray answers: {first}",
            "give the address of the dashboard (port 8265), reached by 'ray dashboard cluster.yaml' or ssh",
        ) from error


def _refused(address: str) -> UserError:
    return UserError(
        f"--address {address}: the cluster refuses this token, or that there is none",
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file with the cluster's token",
    )
