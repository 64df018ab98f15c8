"""The prompt of the manhole: Conch's, with listings that are printed turn by turn, questions, completion and help."""

from __future__ import annotations

import rlcompleter
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from typing import Any

from twisted.conch.insults.insults import modes
from twisted.conch.manhole import Manhole, ManholeInterpreter
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Cooperator, TaskStopped
from twisted.python.failure import Failure

from criu_relay.admin.manhole.commands import Commands
from criu_relay.admin.manhole.listing import ROWS_PER_TURN, Listing, Question
from criu_relay.errors import RelayError
from criu_relay.wire.names import plain

CHOICES = 60
"""Completions that are shown: what fits on a screen."""

NAMES = 2000
"""Names of namespaces or images that a completion looks at: it is done within one turn."""

LONGEST_LINE = 4096
"""Bytes of a line, and lines that wait while a listing is printed: nobody types more."""


class Interpreter(ManholeInterpreter):
    """Shows listings, questions and our errors for people; everything else as Python does."""

    handler: Shell

    def displayhook(self, obj: object) -> None:
        """A value that an expression gave."""
        if isinstance(obj, Listing | Question):
            self.handler.show(obj)
        else:
            super().displayhook(obj)

    def excepthook(self, kind: Any, value: BaseException, at: Any) -> None:
        """An exception that nobody caught."""
        if isinstance(value, RelayError):
            self.write(value.line)
        else:
            super().excepthook(kind, value, at)

    def showtraceback(self) -> None:
        """See L{code.InteractiveInterpreter}: through L{excepthook}, whatever the version of Python."""
        kind, value, at = sys.exc_info()
        assert kind is not None and value is not None
        self.excepthook(kind, value, at.tb_next if at is not None and at.tb_next is not None else at)


class Help:
    """C{help}: Python's own would wait for keys, and with it the whole daemon."""

    def __init__(self, commands: dict[str, Callable[..., object]]) -> None:
        self._commands = commands

    def __call__(self, command: object = None) -> Listing:
        """help(command): how to use it; help(): all of them."""
        if command is None:
            return Listing(self.overview())
        text = getattr(command, "__doc__", None) or "nothing is known of it"
        return Listing(line.removeprefix(" " * 8) for line in text.strip().splitlines())

    def overview(self) -> Iterator[str]:
        for command in self._commands.values():
            usage, _, what = (command.__doc__ or "").strip().splitlines()[0].partition(": ")
            yield f"  {usage.partition('(')[0]:<10}  {what}"

    def __repr__(self) -> str:
        return str(self())


class Leave:
    """C{exit} and C{quit}: Python's own would raise SystemExit in the daemon."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave

    def __call__(self) -> None:
        """exit(): leave."""
        self._leave()

    def __repr__(self) -> str:
        return "exit() or Ctrl-D leaves"


class Shell(Manhole):
    """One session.

    @ivar leave: ends it; by default the connection.
    """

    terminal: Any

    def __init__(self, commands: Commands, greeting: str, extra: dict[str, Any], clock: IReactorTime) -> None:
        """
        @param greeting: the first line.
        @param extra: what else has a name at the prompt.
        """
        self._commands = commands.table()
        self._help = Help(self._commands)
        leave = Leave(self.handle_QUIT)
        super().__init__({**extra, **self._commands, "help": self._help, "exit": leave, "quit": leave})
        self._control = commands.control
        self.leave: Callable[[], None] = self._disconnect
        self._greeting = greeting
        self._clock = clock
        # One step in a turn.
        self._cooperator = Cooperator(lambda: lambda: True, lambda turn: clock.callLater(0, turn))
        self._shown: deque[Listing] = deque()
        self._question: Question | None = None
        self._task: Any = None
        self._typed: deque[bytes] = deque()
        self._leaving = False

    def connectionMade(self) -> None:
        """The terminal is there."""
        super().connectionMade()
        self.interpreter = Interpreter(self, self.namespace)

    def initializeScreen(self) -> None:
        """Greet; what is on the screen stays there."""
        self.setInsertMode()
        keys = "help(command) explains one; Tab completes, Ctrl-C gives up, Ctrl-D leaves"
        self._print([self._greeting, *self._help.overview(), keys])
        self._prompt()

    def terminalSize(self, width: int, height: int) -> None:
        """Tables have 80 columns in any terminal, and nothing is to be drawn again."""

    def connectionLost(self, reason: Failure) -> None:
        """The terminal is gone."""
        self._stop()

    def eof(self) -> None:
        """Nothing more will be typed: leave when everything was answered."""
        self._leaving = True
        if self._task is None and not self._typed:
            self.handle_QUIT()

    # Lines

    def lineReceived(self, line: bytes) -> None:
        """A line, which waits while a listing is printed."""
        self._typed.append(line)
        self._go_on()

    def _go_on(self) -> None:
        """Take the lines that wait, until one gives a listing."""
        while self._typed and self._task is None:
            self._take(self._typed.popleft())
            if self._shown:
                self._task = self._cooperator.cooperate(self._printing())
                self._task.whenDone().addCallbacks(lambda _: self._printed(), self._broken)
            else:
                self._prompt()
        if self._leaving and self._task is None:
            self.handle_QUIT()

    def _take(self, line: bytes) -> None:
        if self._question is None:
            self.pn = bool(self.interpreter.push(line))
            return
        question, self._question = self._question, None
        if line.strip().lower() not in (b"y", b"yes"):
            self._print(["nothing was done"])
            return
        try:
            self.interpreter.displayhook(question.act())
        except RelayError as error:
            self._print([error.line])

    def _prompt(self) -> None:
        if self._needsNewline():
            self.terminal.nextLine()
        self.terminal.write(self._question_text() if self._question else self.ps[self.pn])

    def _question_text(self) -> bytes:
        assert self._question is not None
        return plain(f"{self._question.text}? [y/N] ").encode()

    def characterReceived(self, ch: bytes, moreCharactersComing: bool) -> None:
        """A key."""
        if len(self.lineBuffer) < LONGEST_LINE:
            super().characterReceived(ch, moreCharactersComing)

    # What is shown

    def show(self, what: Listing | Question) -> None:
        """Print it when the line was executed."""
        if isinstance(what, Question):
            self._question = what
        else:
            self._shown.append(what)

    def _print(self, lines: list[str]) -> None:
        for line in lines:
            self.terminal.write(plain(line).encode())
            self.terminal.nextLine()

    def _printing(self) -> Iterator[Deferred[Any] | None]:
        """A turn of the reactor for each so many steps."""
        while self._shown:
            for number, step in enumerate(self._shown.popleft().steps, 1):
                if isinstance(step, str):
                    self._print([step])
                elif step is not None:
                    yield step
                if number % ROWS_PER_TURN == 0:
                    yield None

    def _printed(self) -> None:
        self._task = None
        self._prompt()
        # On a stack of its own: what was printed is not the context of errors to come.
        self._clock.callLater(0, self._go_on)

    def _broken(self, failure: Failure) -> None:
        self._shown.clear()
        if failure.check(TaskStopped):
            return
        error = failure.value
        self._print([error.line if isinstance(error, RelayError) else f"failed: {error!r}"])
        self._printed()

    def _stop(self) -> None:
        """Print no more."""
        self._shown.clear()
        self._typed.clear()
        self._question = None
        if self._task is not None:
            task, self._task = self._task, None
            task.stop()

    def _disconnect(self) -> None:
        self.terminal.loseConnection()

    # Keys

    def handle_QUIT(self) -> None:
        """Leave, and the terminal as it was."""
        self._stop()
        self.terminal.nextLine()
        self.terminal.resetModes([modes.IRM])
        self.leave()

    def handle_INT(self) -> None:
        """Ctrl-C: give up what is printed, asked or typed."""
        self._stop()
        super().handle_INT()

    def handle_TAB(self) -> None:
        """Complete what stands before the cursor."""
        before = b"".join(self.lineBuffer[: self.lineBufferIndex]).decode("ascii", "replace")
        word, choices = self.completions(before)
        common = _common(choices)
        if len(common) > len(word):
            for character in common[len(word) :]:
                self.characterReceived(character.encode(), False)
        elif len(choices) > 1:
            self.terminal.nextLine()
            shown = choices[:CHOICES] + (["..."] if len(choices) > CHOICES else [])
            self._print(["  ".join(shown)])
            self.terminal.write(self.ps[self.pn] + b"".join(self.lineBuffer))
            if back := len(self.lineBuffer) - self.lineBufferIndex:
                self.terminal.cursorBackward(back)

    def completions(self, before: str) -> tuple[str, list[str]]:
        """The word that ends a text, and what it may become: names within quotes, else what Python knows."""
        for quote in ('"', "'"):
            if before.count(quote) % 2:
                head, _, word = before.rpartition(quote)
                parts = head.split(quote)
                names = self._images_of(parts[1]) if len(parts) > 2 else self._names()
                return word, sorted({name + quote for name in islice(names, NAMES) if name.startswith(word)})
        start = len(before)
        while start and (before[start - 1].isalnum() or before[start - 1] in "._"):
            start -= 1
        word = before[start:]
        completer = rlcompleter.Completer(self.interpreter.locals)
        found: list[str] = []
        while word and len(found) < NAMES and (one := completer.complete(word, len(found))) is not None:
            found.append(one)
        return word, sorted(set(found))

    def _names(self) -> Iterator[str]:
        return (namespace["name"] for namespace in self._control.each_namespace())

    def _images_of(self, namespace: str) -> Iterator[str]:
        try:
            for image in self._control.each_image(namespace):
                yield image["name"]
                if image["snapshot"] > 1:
                    yield f"{image['snapshot']}/{image['name']}"
        except RelayError:
            return


def _common(words: list[str]) -> str:
    """What all of them begin with."""
    letters = takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    return "".join(column[0] for column in letters)
