"""The gateway's ports: never two services on one, kept whatever restarts, given back."""

from hypothesis import given
from hypothesis import strategies as st

from quire_operator import ports
from quire_operator.names import Key
from quire_operator.ports import FIRST_PORT, LAST_PORT, Ports

CHAT, CODE = Key("default", "chat"), Key("default", "code")
OLD, YOUNG = (1.0, "uid-1"), (2.0, "uid-2")


def known(*keys: Key) -> Ports:
    found = Ports()
    for number, key in enumerate(keys):
        found.learn(key, None, (float(number), key.name))
    return found


def test_the_name_decides_where_nothing_else_does() -> None:
    one, other = known(CHAT).hold(CHAT), known(CODE, CHAT).hold(CHAT)
    assert one == other
    assert one is not None
    assert FIRST_PORT <= one <= LAST_PORT


def test_what_status_says_is_kept() -> None:
    found = Ports()
    found.learn(CHAT, 20777, OLD)
    assert found.hold(CHAT) == 20777


def colliding() -> tuple[Key, Key]:
    """Two names whose own places are one and the same."""
    seen: dict[int | None, Key] = {}
    for number in range(ports.LAST_PORT):
        key = Key("default", f"chat-{number}")
        port = known(key).hold(key)
        if port in seen:
            return seen[port], key
        seen[port] = key
    raise AssertionError("names spread too well")


def test_two_at_once_get_two_though_neither_is_written_yet() -> None:
    one, other = colliding()
    found = known(one, other)
    first, second = found.hold(one), found.hold(other)
    assert first is not None
    assert second == first + 1
    assert found.hold(one) == first, "asked again, the same"


def test_of_two_that_claim_one_port_the_older_keeps_it() -> None:
    found = Ports()
    assert found.learn(CODE, 20001, YOUNG) == set()
    assert found.learn(CHAT, 20001, OLD) == {CODE}, "who is to be looked at again"
    moved = found.hold(CODE)
    assert moved != 20001
    assert found.hold(CHAT) == 20001
    assert found.learn(CODE, moved, YOUNG) == set()


def test_a_port_that_moved_is_believed_by_one_who_stood_by() -> None:
    found = Ports()
    found.learn(CHAT, 20001, OLD)
    found.learn(CHAT, 20002, OLD)
    assert found.hold(CHAT) == 20002


def test_an_older_status_does_not_take_back_what_was_given() -> None:
    found = Ports()
    found.learn(CHAT, 20001, OLD)
    found.learn(CODE, 20001, YOUNG)
    moved = found.hold(CODE)
    found.learn(CODE, 20001, YOUNG)  # the watch tells of a write before ours
    assert found.port(CODE) == moved


def test_a_port_outside_the_range_is_nobodys() -> None:
    found = Ports()
    found.learn(CHAT, 80, OLD)
    assert found.hold(CHAT) not in (80, None)


def test_a_port_goes_with_its_service() -> None:
    found = Ports()
    found.learn(CHAT, 20001, OLD)
    found.forget(CHAT)
    found.learn(CODE, 20001, YOUNG)
    assert found.hold(CODE) == 20001


def test_what_was_never_written_is_given_back() -> None:
    found = known(CHAT, CODE)
    given_out = found.hold(CHAT)
    found.release(CHAT)
    assert found.port(CHAT) is None
    assert found.learn(CODE, given_out, YOUNG) == set()


def test_a_full_range_has_none_left() -> None:
    found = Ports()
    for index, port in enumerate(range(FIRST_PORT, LAST_PORT + 1)):
        found.learn(Key("many", str(index)), port, OLD)
    found.learn(CHAT, None, YOUNG)
    assert found.hold(CHAT) is None
    found.forget(Key("many", "5"))
    assert found.hold(CHAT) == ports.FIRST_PORT + 5


class Story:
    """`written` is what the API server has; a restart forgets all but that."""

    def __init__(self) -> None:
        self.ports = Ports()
        self.written: dict[int, int | None] = {}

    def learn(self, index: int) -> None:
        self.ports.learn(self.key(index), self.written[index], (float(index), str(index)))

    @staticmethod
    def key(index: int) -> Key:
        return Key("n", str(index))

    def create(self, one: int, _: int) -> None:
        if one not in self.written:
            self.written[one] = None
            self.learn(one)

    def delete(self, one: int, _: int) -> None:
        self.written.pop(one, None)
        self.ports.forget(self.key(one))

    def hold(self, one: int, _: int) -> None:
        if one in self.written:
            self.ports.hold(self.key(one))

    def write(self, one: int, _: int) -> None:
        if one in self.written:
            self.written[one] = self.ports.port(self.key(one))
            self.learn(one)

    def restore(self, one: int, other: int) -> None:
        """A backup brings back what another has got meanwhile."""
        if one in self.written and other in self.written:
            self.written[one] = self.written[other]
            self.learn(one)

    def restart(self, _: int, __: int) -> None:
        self.ports = Ports()
        for index in self.written:
            self.learn(index)


EVENTS = ("create", "delete", "hold", "write", "restore", "restart")


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5), st.integers(0, 5))))
def test_whatever_happens_held_ports_differ_and_last(events: list[tuple[str, int, int]]) -> None:
    story = Story()
    for what, one, other in events:
        getattr(story, what)(one, other)
    held = {index: story.ports.hold(story.key(index)) for index in story.written}
    assert None not in held.values()
    again = {index: story.ports.hold(story.key(index)) for index in story.written}
    assert len(set(again.values())) == len(again)
    assert {story.ports.hold(story.key(index)) for index in again} == set(again.values())
