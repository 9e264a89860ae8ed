"""Who of those that wait had least, so that one user's burst does not keep another one waiting.

Start-time fair queueing over tokens: each user's prompt tokens (less those found in the cache) and
generated tokens are counted, and the user who had least is next. One that begins to wait starts at
the `floor`, where those who waited all along stand, or where it stood itself if that is more: time
without requests earns nothing. The floor moves with every admission, by the prompt's share for each
that waits, so that new users without end pass by nobody for ever.

Pure: no clock, no randomness.
"""


class FairShares:
    """Tokens served by user, as far as they still tell anything."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._num_waiting: dict[str, int] = {}
        self._floor = 0.0

    def served(self, user: str) -> float:
        """Where `user` stands, in tokens; the lowest is next."""
        return self._served.get(user, self._floor)

    def enter(self, user: str) -> None:
        """One more sequence of `user` waits to be begun."""
        if user not in self._num_waiting:
            self._served[user] = max(self.served(user), self._floor)
        self._num_waiting[user] = self._num_waiting.get(user, 0) + 1

    def leave(self, user: str) -> None:
        """One less."""
        self._num_waiting[user] -= 1
        if not self._num_waiting[user]:
            del self._num_waiting[user]

    def begin(self, user: str, num_tokens: int) -> None:
        """A waiting sequence of `user` begins, with `num_tokens` of its prompt to compute."""
        share = num_tokens / len(self._num_waiting)
        self._floor = max(self._floor, self.served(user)) + share
        self.leave(user)
        self.charge(user, num_tokens)
        self._served = {
            name: served
            for name, served in self._served.items()
            if served > self._floor or name in self._num_waiting
        }

    def charge(self, user: str, num_tokens: int) -> None:
        """`user` was served `num_tokens`."""
        self._served[user] = self.served(user) + num_tokens
