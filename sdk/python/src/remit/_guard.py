"""A decorator: the function runs only after an allow, with exactly the arguments that were checked."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable, Sequence, TypeVar

from ._client import RemitClient, RemitUnavailable

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def default_client() -> RemitClient:
    """The client that the environment describes, made once."""
    try:
        return RemitClient.from_env()
    except ValueError as error:
        raise RemitUnavailable(f"Remit can't be asked: {error}") from None


def guard(tool: str, *, client: RemitClient | None = None, ignore: Sequence[str] = ()) -> Callable[[F], F]:
    """Checks `tool` (`server/name`) before each call; RemitDenied or RemitUnavailable instead of the call.

    What is checked are the bound arguments with defaults, by parameter name; `**kwargs` count as arguments of their own. They must be
    plain JSON, and the function gets copies. `ignore` names parameters that no caller of the tool controls, such as `self`.
    """

    def decorate(function: F) -> F:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__name__}: a generator runs after its call is over, and can't be guarded")
        signature = inspect.signature(function)
        unknown = [name for name in ignore if name not in signature.parameters]
        if unknown:
            raise TypeError(f"{function.__name__}: ignore: there is no parameter `{unknown[0]}`")

        def bind(args: Any, kwargs: Any) -> tuple[inspect.BoundArguments, dict[str, Any]]:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments: dict[str, Any] = {}
            for name, value in bound.arguments.items():
                kind = signature.parameters[name].kind
                named = value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
                for key in named if name not in ignore else ():
                    if key in arguments:
                        raise RemitUnavailable(f"Remit can't be asked: `{key}` is given twice")
                    arguments[key] = list(named[key]) if kind is inspect.Parameter.VAR_POSITIONAL else named[key]
            return bound, arguments

        def rebind(bound: inspect.BoundArguments, arguments: dict[str, Any]) -> inspect.BoundArguments:
            for name in bound.arguments.keys() - set(ignore):
                kind = signature.parameters[name].kind
                if kind is inspect.Parameter.VAR_KEYWORD:
                    bound.arguments[name] = {key: arguments[key] for key in bound.arguments[name]}
                else:
                    bound.arguments[name] = arguments[name]
            return bound

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def checked(*args: Any, **kwargs: Any) -> Any:
                remit = client or default_client()
                bound, arguments = bind(args, kwargs)
                decision = await remit.acheck(tool, arguments)
                bound = rebind(bound, decision.arguments)
                return await remit.arun(decision, lambda: function(*bound.args, **bound.kwargs))

        else:

            @functools.wraps(function)
            def checked(*args: Any, **kwargs: Any) -> Any:
                remit = client or default_client()
                bound, arguments = bind(args, kwargs)
                decision = remit.check(tool, arguments)
                bound = rebind(bound, decision.arguments)
                return remit.run(decision, lambda: function(*bound.args, **bound.kwargs))

        return checked  # type: ignore[return-value]

    return decorate
