"""Who looks at the page, and what each kind of person may do: as the whole station knows them."""

from __future__ import annotations

from station.roles import ANONYMOUS, Person, Role

__all__ = ["ANONYMOUS", "Person", "Role"]
