"""The vocabulary of the small world in all stories and dialogues."""

from __future__ import annotations

import dataclasses
import random

GIRLS = ["Mia", "Lily", "Anna", "Sara", "Zoe", "Emma", "Nora", "Ella", "Ruby", "Rose"]
BOYS = ["Tom", "Ben", "Max", "Sam", "Leo", "Jack", "Finn", "Tim", "Oscar", "Noah"]
ANIMALS = ["fox", "rabbit", "bear", "mouse", "cat", "dog", "duck", "frog", "owl", "pig"]
TRAITS = ["brave", "kind", "clever", "shy", "happy", "funny", "curious", "gentle"]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "pink", "orange", "purple"]
TOYS = ["ball", "kite", "boat", "drum", "book", "hat", "scarf", "bell", "lamp", "cup", "bag", "coat"]
SMALL_THINGS = ["key", "ring", "coin", "spoon", "map", "letter", "button", "shell"]
FOODS = ["apples", "pears", "cakes", "nuts", "plums", "cookies", "carrots", "berries"]
PLACES = [
    "at the park",
    "in the garden",
    "in the forest",
    "by the river",
    "on the hill",
    "at the beach",
    "on the farm",
    "at the market",
    "by the lake",
    "at the school",
]
SPOTS = [
    "under the bed",
    "in the box",
    "on the table",
    "behind the door",
    "in the tall grass",
    "under the bench",
    "behind the tree",
    "in the old barn",
    "under the stone",
    "on the shelf",
]
WEATHER = ["sunny", "warm", "windy", "cold", "bright", "cloudy"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclasses.dataclass(frozen=True)
class Character:
    """A character with a name; `kind` is "girl", "boy" or an animal."""

    name: str
    kind: str

    @property
    def is_girl(self) -> bool:
        """True if the name takes female pronouns."""
        return self.name in GIRLS

    @property
    def he(self) -> str:
        """The subject pronoun."""
        return "she" if self.is_girl else "he"

    @property
    def him(self) -> str:
        """The object pronoun."""
        return "her" if self.is_girl else "him"

    @property
    def his(self) -> str:
        """The possessive."""
        return "her" if self.is_girl else "his"


def cast(rng: random.Random, count: int, animals: bool = True) -> list[Character]:
    """Draw `count` characters with different names."""
    found = []
    for name in rng.sample(GIRLS + BOYS, count):
        child = "girl" if name in GIRLS else "boy"
        found.append(Character(name, rng.choice(ANIMALS) if animals and rng.random() < 0.5 else child))
    return found


def a(noun: str) -> str:
    """Return the noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[0].upper() + text[1:]


def listing(items: list[str]) -> str:
    """Join texts as in `x, y and z`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
