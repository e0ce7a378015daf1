"""The source of the SDK's token: a fixed one, or a function of the application's that gives one."""

from __future__ import annotations

import asyncio
from inspect import isawaitable

from solowire.errors import ClientError
from solowire.sdk.arguments import Token, check_token, check_token_text
from solowire.sdk.network_errors import read_token_error
from solowire.sdk.retry_policy import Fault


class TokenUnavailable(Exception):
    """The token function gave none. fault: what that is to the policy. error: what it raised."""

    def __init__(self, fault: Fault, error: Exception) -> None:
        super().__init__(fault.reason)
        self.fault = fault
        self.error = error


class TokenSource:
    """Gives the client its token. token: a token, or a function, plain or async, that gives one."""

    def __init__(self, token: Token) -> None:
        self._token = check_token(token)

    @property
    def fixed(self) -> str | None:
        """The token, if it is no function's."""
        return self._token if isinstance(self._token, str) else None

    @property
    def is_renewable(self) -> bool:
        """Whether asking again may give another one."""
        return callable(self._token)

    def replace(self, token: str) -> None:
        """The fixed token has been replaced; a function stays what it is."""
        if not self.is_renewable:
            self._token = token

    async def get(self, timeout: float) -> str:
        """The token to show now. Raises TokenUnavailable; a ClientError of the function's own passes: it ends it all.

        timeout: seconds. A plain function that waits holds up the whole event loop: let it be async.
        """
        if isinstance(self._token, str):
            return self._token
        try:
            async with asyncio.timeout(timeout):
                given = self._token()
                token = await given if isawaitable(given) else given
            return check_token_text(token, "what the token function gives")
        except ClientError:
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not we: what the function itself waited for. Let through, it would end our task, and nobody would know.
            cause = TimeoutError("what it waited for was cancelled")
            raise TokenUnavailable(read_token_error(cause), cause) from error
        except TimeoutError as error:
            cause = error if str(error) else TimeoutError(f"it gave none within {timeout:g} s")
            raise TokenUnavailable(read_token_error(cause), error) from error
        except Exception as error:
            raise TokenUnavailable(read_token_error(error), error) from error
