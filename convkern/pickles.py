"""Read pickles without running them.

A pickle is a small program, and Python's unpickler would do whatever it says.
Here its opcodes drive a stack machine that knows plain values only: no module is
imported, no object built, no function called.  A format that needs more says
which names may appear, and what the calls and states that go with them stand for.
An opcode, a name or a call that is not known is refused.
"""

from __future__ import annotations

import pickletools
import warnings
from typing import Any, ClassVar, NamedTuple

from convkern.errors import DAMAGE, FormatError, one_line

#: Steps until a program counts as endless; the largest files have a quarter of a million.
_MAX_STEPS = 1 << 21


class Global(NamedTuple):
    """A name that the pickle imports; here it stays a name."""

    name: str


class PickleMachine:
    """A reader of plain values; subclasses teach it what else their format holds.

    Numbers, None, booleans, tuples, lists, and dicts with strings or integers
    as keys are built as they are.  The byte strings of Python 2 become text of
    the same length (Latin-1).

    Examples
    --------
    >>> import pickle
    >>> from convkern.pickles import PickleMachine
    >>> PickleMachine().run(pickle.dumps({"a": [1, (2.5, None)]}, protocol=2))
    {'a': [1, (2.5, None)]}
    """

    #: Every name that the pickle may refer to.
    names: ClassVar[frozenset[str]] = frozenset()
    #: What to tell the owner of a pickle that refers to another one.
    accepted: ClassVar[str] = "only plain values are read"

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what a call of `function`, normally a `Global`, stands for."""
        raise FormatError("a damaged pickle (a call that is not known)")

    def build(self, value: Any, state: Any) -> None:
        """Give its state to a value that `call` returned."""
        raise FormatError("a damaged pickle (a state without an object)")

    def persistent(self, identity: Any) -> Any:
        """Return what is stored outside the pickle under `identity`."""
        raise FormatError("a damaged pickle (a reference to elsewhere)")

    def run(self, program: bytes) -> Any:
        """Return the value that a pickle describes.

        Raises
        ------
        FormatError
            If it is damaged, or holds anything that is not known.  Memory and
            time are bounded by the length of the program.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd escapes, in names that are refused
                return self._run(program)
        except FormatError:
            raise
        except DAMAGE as error:
            raise FormatError(f"a damaged pickle ({one_line(error)})") from error

    def _run(self, program: bytes) -> Any:
        """Step through the opcodes."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def pop(start: int) -> list[Any]:
            items = stack[start:]
            del stack[start:]
            return items

        argument: Any
        for step, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if step == _MAX_STEPS:
                raise FormatError(f"a pickle of more than {_MAX_STEPS} steps")
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(argument)
                case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                    stack.append(argument)
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "MARK":
                    marks.append(len(stack))
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(pop(-int(opcode.name[-1]))))
                case "TUPLE":
                    stack.append(tuple(pop(marks.pop())))
                case "EMPTY_LIST":
                    stack.append([])
                case "APPEND":
                    _extend(stack[-2], pop(-1))
                case "APPENDS":
                    items = pop(marks.pop())
                    _extend(stack[-1], items)
                case "EMPTY_DICT":
                    stack.append({})
                case "SETITEM":
                    _update(stack[-3], pop(-2))
                case "SETITEMS":
                    items = pop(marks.pop())
                    _update(stack[-1], items)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(self._global(argument.replace(" ", ".", 1)))
                case "STACK_GLOBAL":
                    stack.append(self._global(".".join(pop(-2))))
                case "BINPERSID":
                    stack.append(self.persistent(stack.pop()))
                case "REDUCE":
                    function, arguments = pop(-2)
                    stack.append(self.call(function, arguments))
                case "BUILD":
                    state = stack.pop()
                    self.build(stack[-1], state)
                case "STOP":
                    return stack.pop()
                case name:
                    raise FormatError(f"a pickle with the opcode {name}; {self.accepted}")
        raise FormatError("a damaged pickle (it does not stop)")

    def _global(self, name: str) -> Global:
        """Accept a name that the format refers to, refuse every other."""
        if name not in self.names:
            raise FormatError(f"a pickle that refers to {name[:80]!r}; {self.accepted}")
        return Global(name)


def _extend(target: Any, items: list[Any]) -> None:
    """Append to a list, and to nothing else."""
    if not isinstance(target, list):
        raise FormatError("a damaged pickle (an item without a list)")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    """Put key, value, key, value into a dict; a nested key could take for ever to hash."""
    if not isinstance(target, dict) or not all(isinstance(key, (str, int)) for key in items[::2]):
        raise FormatError("a damaged pickle (a dict with a key that is not a string)")
    target.update(zip(items[::2], items[1::2], strict=True))
