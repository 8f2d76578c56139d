"""A grammar of short stories: an opening, episodes that change the scene, an ending."""

from __future__ import annotations

import dataclasses
import random

import words
from words import Character, a, capital


@dataclasses.dataclass
class Scene:
    """The state of the world while a story is told."""

    rng: random.Random
    hero: Character
    friend: Character
    colour: str
    toy: str
    place: str
    met: bool = False

    def pick(self, *choices: str) -> str:
        """Draw one of several wordings."""
        return self.rng.choice(choices)


def scene(rng: random.Random, kind: str | None = None) -> Scene:
    """Draw a scene, with a hero of this `kind` if given."""
    hero, friend = words.cast(rng, 2)
    if kind is not None:
        hero = Character(hero.name, kind)
    return Scene(rng, hero, friend, rng.choice(words.COLOURS), rng.choice(words.TOYS), rng.choice(words.PLACES))


def opening(s: Scene) -> str:
    """Introduce the hero, the place and the toy."""
    hero, trait = s.hero, s.rng.choice(words.TRAITS)
    home = s.rng.choice([place for place in words.PLACES if place != s.place and "school" not in place])
    who = s.pick(
        f"Once upon a time, there was a little {hero.kind} named {hero.name}. {capital(hero.he)} was very {trait}.",
        f"Once upon a time, there was {a(trait)} {hero.kind}. {capital(hero.his)} name was {hero.name}.",
        f"Once upon a time, {a(trait)} {hero.kind} named {hero.name} lived in a small house {home}.",
        f"{hero.name} was {a(trait)} little {hero.kind}. {capital(hero.he)} lived {home}.",
    )
    thing = s.pick(
        f"{hero.name} had {a(s.colour)} {s.toy}. {capital(hero.he)} loved the {s.toy} very much.",
        f"{capital(hero.he)} had a new {s.toy}. It was {s.colour}, and {hero.he} took it everywhere.",
        f"{capital(hero.his)} mother gave {hero.him} {a(s.colour)} {s.toy}.",
    )
    day = s.pick(
        f"One {s.rng.choice(words.WEATHER)} day, {hero.name} went to play {s.place}.",
        f"One morning, {hero.name} took the {s.colour} {s.toy} and went out to play {s.place}.",
        f"One day, {hero.name} wanted to play {s.place}.",
    )
    return f"{who} {thing} {day}"


def meeting(s: Scene) -> str:
    """Tell how the friend comes in."""
    hero, friend = s.hero, s.friend
    s.met = True
    return s.pick(
        f'There {hero.he} met a {friend.kind} named {friend.name}. "Hello, my name is {hero.name}," said {hero.name}. '
        f'"Do you want to play with me?" "Yes," said {friend.name}, and they played together.',
        f'{capital(hero.he)} saw a {friend.kind} who was all alone. "What is your name?" asked {hero.name}. '
        f'"My name is {friend.name}," said the {friend.kind}. Soon they were friends.',
        f"{capital(hero.he)} saw {a(friend.kind)} named {friend.name}. {friend.name} was sad because {friend.he} had "
        f"nobody to play with. {hero.name} let {friend.him} play with the {s.toy}, and {friend.name} was happy.",
    )


def lost(s: Scene) -> str:
    """Tell how the toy is lost and found again."""
    hero, friend = s.hero, s.friend
    first, second = s.rng.sample(words.SPOTS, 2)
    cause = s.pick(
        f"Then the wind blew hard, and the {s.toy} was gone.",
        f"When it was time to go home, {hero.name} could not find the {s.toy}.",
        f"But {hero.name} was not careful, and {hero.he} lost the {s.colour} {s.toy}.",
    )
    search = (
        f'"Where is my {s.toy}?" said {hero.name}. {capital(hero.he)} looked {first}, but the {s.toy} was not there.'
    )
    finder = friend if s.met else hero
    help_ = s.pick(f'"I will help you," said {friend.name}. ', f"{friend.name} came to help. ") if s.met else ""
    found = s.pick(
        f"Then {finder.name} looked {second}, and there it was! ",
        f"At last {finder.name} found the {s.colour} {s.toy} {second}. ",
    )
    joy = (
        s.pick(f'"Thank you, {friend.name}!" said {hero.name}.', f"{hero.name} hugged {friend.name}.")
        if s.met
        else f"{hero.name} was happy again."
    )
    return f"{cause} {hero.name} was very sad. {search} {help_}{found}{joy}"


def rain(s: Scene) -> str:
    """Tell how the weather changes and changes back."""
    they = "they" if s.met else s.hero.he
    return (
        s.pick("Then it started to rain. ", "Soon dark clouds came, and it began to rain. ")
        + s.pick(f"{capital(they)} ran under a big tree and waited. ", f"{capital(they)} hid in the old barn. ")
        + s.pick("When the rain stopped, ", "After the rain, ")
        + s.pick(f"{they} saw a rainbow in the sky.", "the sun came out and everything was bright again.")
    )


def noise(s: Scene) -> str:
    """Tell of a fright without a cause."""
    hero, friend = s.hero, s.friend
    animal = s.rng.choice([kind for kind in words.ANIMALS if kind not in (hero.kind, friend.kind)])
    calm = f'"Do not be afraid," said {friend.name}. ' if s.met else f"But {hero.he} was brave and went to look. "
    end = "They both laughed." if s.met else f"{hero.name} laughed."
    return (
        f"Suddenly {hero.name} heard a loud noise. {capital(hero.he)} was scared. {calm}"
        f"It was only {a(animal)} {s.pick('looking for food', 'that wanted to play')}. {end}"
    )


def sharing(s: Scene) -> str:
    """Tell a little arithmetic with food."""
    hero, friend = s.hero, s.friend
    food = s.rng.choice(words.FOODS)
    count = s.rng.randint(3, 6)
    given = s.rng.randint(2, count - 1)
    left = words.NUMBERS[count - given]
    return (
        f"After a while, {hero.name} was hungry. {friend.name} had {words.NUMBERS[count]} {food}. "
        f"{capital(friend.he)} gave {words.NUMBERS[given]} {food} to {hero.name} and kept {left}. "
        + s.pick(f'"Thank you, you are very kind," said {hero.name}.', f"The {food} were very good.")
    )


def rescue(s: Scene) -> str:
    """Tell how somebody small needs help."""
    hero, friend = s.hero, s.friend
    who = f"{hero.name} and {friend.name}" if s.met else hero.name
    they, them = ("they", "them") if s.met else (hero.he, hero.him)
    victim, trouble, remedy, thanks = s.rng.choice(
        [
            ("bird", "was stuck in a tree", "climbed up and set it free", f"sang a song for {them}"),
            ("cat", "was stuck in a tree", "found a long rope and helped it down", "was very glad"),
            ("fish", "was caught in a net", "cut the net and let it go", "jumped for joy"),
            ("turtle", "lay on its back", "turned it over", f"smiled at {them}"),
        ]
    )
    return (
        f"On the way, {they} saw a little {victim} that {trouble}. {who} wanted to help. {capital(they)} {remedy}. "
        f"The {victim} {thanks}."
    )


def gift(s: Scene) -> str:
    """Tell of a present for the friend."""
    hero, friend = s.hero, s.friend
    colour, toy = s.rng.choice(words.COLOURS), s.rng.choice([toy for toy in words.TOYS if toy != s.toy])
    return f"The next day was {friend.name}'s birthday. {hero.name} gave {friend.him} {a(colour)} {toy}. " + s.pick(
        f'"I love this {toy}!" said {friend.name}. "It is the best gift."',
        f'{friend.name} was very happy with the {colour} {toy}. "Thank you, {hero.name}!" said {friend.name}.',
    )


def building(s: Scene) -> str:
    """Tell how the two make something."""
    hero, friend = s.hero, s.friend
    work = s.rng.choice(["a small house", "a bridge", "a wooden boat", "a tall tower"])
    noun = work.split()[-1]
    return (
        f'"Let us build {work}," said {friend.name}. {hero.name} found some wood, and {friend.name} found a rope. '
        f"They worked all day. " + s.pick(f"At last the {noun} was ready.", f"The {noun} was big and strong.")
    )


def ending(s: Scene) -> str:
    """Tell how all go home, and close."""
    hero, friend = s.hero, s.friend
    home = s.pick(
        f"When the sun went down, {hero.name} went home.",
        f"In the evening, {hero.name} went home and told {hero.his} mother about the day.",
        f"Then {hero.name} went home and had some warm soup.",
    )
    moral = s.pick(
        f"{hero.name} went to bed with the {s.colour} {s.toy} and slept well.",
        f"That night {hero.name} put the {s.colour} {s.toy} next to {hero.his} bed.",
        *(
            [
                f"From that day on, {hero.name} and {friend.name} were best friends.",
                f"{hero.name} was glad to have a friend like {friend.name}.",
            ]
            if s.met
            else [f"It was a good day for {hero.name}."]
        ),
    )
    return f"{home} {moral}" + s.pick(" The end.", "")


ALONE = [lost, rain, noise, rescue]
TOGETHER = [lost, rain, noise, rescue, sharing, gift, building]


def story(s: Scene, episodes: int) -> str:
    """Tell a whole story, with a number of episodes between opening and ending."""
    parts = [opening(s)]
    if episodes > 1 or s.rng.random() < 0.5:
        early = s.rng.random() < 0.3
        alone = [s.rng.choice(ALONE)] if early else []
        parts += [tell(s) for tell in alone]
        parts.append(meeting(s))
        rest = [tell for tell in TOGETHER if tell not in alone]
        parts += [tell(s) for tell in s.rng.sample(rest, max(0, episodes - 1 - len(alone)))]
    else:
        parts += [s.rng.choice(ALONE)(s)]
    parts.append(ending(s))
    return " ".join(parts)
