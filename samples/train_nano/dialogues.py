"""A grammar of dialogues: facts to recall, small talk, counting, stories on request.

A dialogue is a list of messages {"role", "content"}, as chat templates take them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import stories
import words
from words import a, capital, listing

Message = dict[str, str]
Turn = tuple[str, str]


def messages(turns: list[Turn]) -> list[Message]:
    """Convert (user, assistant) turns to messages."""
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Fact:
    """A sentence, and the questions that it answers."""

    sentence: str
    questions: list[Turn]


def facts(rng: random.Random, count: int) -> list[Fact]:
    """Draw `count` facts about different people and things, so that each question has one answer."""
    names = rng.sample(words.GIRLS + words.BOYS, count)
    pools = {
        "toy": rng.sample(words.TOYS, count),
        "thing": rng.sample(words.SMALL_THINGS, count),
        "place": rng.sample(words.PLACES, count),
        "spot": rng.sample(words.SPOTS, count),
        "food": rng.sample(words.FOODS, count),
    }
    return [_fact(rng, name, *(pool[i] for pool in pools.values())) for i, name in enumerate(names)]


def _fact(rng: random.Random, name: str, toy: str, thing: str, place: str, spot: str, food: str) -> Fact:
    colour = rng.choice(words.COLOURS)
    match rng.choice(["owns", "owns", "owns", "is at", "likes", "hidden"]):
        case "owns":
            sentence = f"{name} has {a(colour)} {toy}."
            return Fact(
                sentence,
                [
                    (f"What colour is {name}'s {toy}?", f"{name}'s {toy} is {colour}."),
                    (f"What colour is {name}'s {toy}?", f"{name}'s {toy} is {colour}."),
                    (f"Who has {a(colour)} {toy}?", sentence),
                    (f"What does {name} have?", sentence),
                ],
            )
        case "is at":
            sentence = f"{name} is {place}."
            return Fact(sentence, [(f"Where is {name}?", sentence), (f"Who is {place}?", sentence)])
        case "likes":
            sentence = f"{name} likes {food}."
            return Fact(sentence, [(f"What does {name} like?", sentence), (f"Who likes {food}?", sentence)])
        case _:
            sentence = f"The {thing} is {spot}."
            return Fact(sentence, [(f"Where is the {thing}?", sentence), (f"What is {spot}?", sentence)])


def recall(rng: random.Random, count: int | None = None) -> list[Message]:
    """Draw a dialogue of facts and then questions about them, one in each turn."""
    told = facts(rng, count or rng.randint(1, 6))
    asked = [rng.choice(fact.questions) for fact in rng.sample(told, min(len(told), rng.randint(1, 4)))]
    text = " ".join(fact.sentence for fact in told)
    first, *rest = asked
    if rng.random() < 0.3:
        ready = rng.choice(["Thank you. What do you want to know?", "I will remember that."])
        return messages([(text, ready), *asked])
    return messages([(f"{text} {first[0]}", first[1]), *rest])


GREETINGS = ["Hey", "Hi", "Hello", "Hello there", "Good morning", "Hey there"]
HOW_ARE_YOU = ["how are you doing?", "how are you?", "how are you today?", "how are you doing today?"]
WELL = [
    "I am doing well, thank you! How can I help you today?",
    "I am very well, thank you. And how are you?",
    "I am fine, thank you! What can I do for you?",
]
SMALL_TALK: list[tuple[list[str], list[str]]] = [
    (["What is your name?", "Who are you?"], ["My name is Doge. I am a very small helper."]),
    (["What can you do?", "Can you help me?"], ["I can tell short stories and answer simple questions."]),
    (
        ["Thank you!", "Thanks!", "Thank you for your help."],
        ["You are welcome!", "You are welcome. I am glad to help."],
    ),
    (["I am fine too.", "I am well, thank you."], ["I am glad to hear that!"]),
    (["Are you a dog?"], ["No, I am not a dog. I am a very small helper."]),
]
FAREWELLS = [(["Goodbye!", "Bye!", "Good night!", "See you soon!"], ["Goodbye! Have a nice day!"])]


def small_talk(rng: random.Random) -> list[Message]:
    """Draw a dialogue of a greeting, a few polite turns, and perhaps a name to remember."""
    turns: list[Turn] = []
    match rng.randrange(5):
        case 0 | 1 | 2:
            comma = rng.choice([",", ""])
            question = rng.choice([f"{rng.choice(GREETINGS)}{comma} {how}" for how in HOW_ARE_YOU])
            turns.append((rng.choice([question, question, capital(rng.choice(HOW_ARE_YOU))]), rng.choice(WELL)))
        case 3:
            mark = rng.choice(["!", ".", ""])
            turns.append((f"{rng.choice(GREETINGS)}{mark}", "Hello! How can I help you today?"))
        case _:
            name = rng.choice(words.GIRLS + words.BOYS)
            turns.append((f"{rng.choice(GREETINGS)}, my name is {name}.", f"Hello {name}! It is nice to meet you."))
            if rng.random() < 0.7:
                turns.append(("What is my name?", f"Your name is {name}."))
    for users, answers in rng.sample(SMALL_TALK, rng.randint(0, 2)) + rng.sample(FAREWELLS, rng.randint(0, 1)):
        turns.append((rng.choice(users), rng.choice(answers)))
    return messages(turns)


def counting(rng: random.Random) -> list[Message]:
    """Draw a dialogue that counts, adds or subtracts, up to ten."""
    number = words.NUMBERS
    name, other = rng.sample(words.GIRLS + words.BOYS, 2)
    food = rng.choice(words.FOODS)
    match rng.randrange(3):
        case 0:
            low = rng.randint(1, 6)
            high = rng.randint(low + 2, min(low + 6, 10))
            numbers = ", ".join(number[low : high + 1])
            return messages([(f"Count from {number[low]} to {number[high]}.", f"{capital(numbers)}.")])
        case 1:
            one, two = rng.randint(2, 5), rng.randint(2, 5)
            question = (
                f"{name} has {number[one]} {food}. {other} gives {name} {number[two]} {food}. "
                f"How many {food} does {name} have now?"
            )
            return messages([(question, f"{name} has {number[one + two]} {food} now.")])
        case _:
            one = rng.randint(4, 10)
            two = rng.randint(2, one - 2)
            question = (
                f"{name} has {number[one]} {food}. {name} eats {number[two]} {food}. "
                f"How many {food} does {name} have now?"
            )
            return messages([(question, f"{name} has {number[one - two]} {food} now.")])


KNOWN: list[Turn] = [
    ("What colour is the sky?", "The sky is blue."),
    ("What colour is the grass?", "The grass is green."),
    ("What colour is snow?", "Snow is white."),
    ("What does a dog say?", "A dog says woof."),
    ("What does a cat say?", "A cat says meow."),
    ("What does a duck say?", "A duck says quack."),
    ("What is the opposite of big?", "The opposite of big is small."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What is the opposite of happy?", "The opposite of happy is sad."),
    ("Where do fish live?", "Fish live in the water."),
    ("Where do birds live?", "Birds live in the trees."),
    ("When does the sun shine?", "The sun shines in the day."),
    ("When do we see the stars?", "We see the stars at night."),
]


def knowledge(rng: random.Random) -> list[Message]:
    """Draw a dialogue about things that are always true."""
    return messages(rng.sample(KNOWN, rng.randint(1, 3)))


def told_story(rng: random.Random) -> list[Message]:
    """Draw a dialogue with a story on request, and perhaps a question about it."""
    kind = rng.choice(words.ANIMALS) if rng.random() < 0.7 else None
    s = stories.scene(rng, kind)
    about = rng.choice([f" about {a(s.hero.kind)}", f" about {a(s.hero.kind)} named {s.hero.name}"] + [""] * (not kind))
    ask = rng.choice([f"Tell me a story{about}.", f"Tell me a short story{about}.", f"Can you tell me a story{about}?"])
    turns = [(ask, stories.story(s, rng.randint(1, 2)))]
    if rng.random() < 0.5:
        turns.append(rng.choice(_about(s)))
    return messages(turns)


def read_story(rng: random.Random) -> list[Message]:
    """Draw a dialogue in which the user tells how a story begins and asks about it."""
    s = stories.scene(rng)
    first, *rest = rng.sample(_about(s), rng.randint(1, 2))
    return messages([(f"{stories.opening(s)} {first[0]}", first[1]), *rest])


def _about(s: stories.Scene) -> list[Turn]:
    hero = s.hero
    return [
        (f"What was the name of the {hero.kind}?", f"The name of the {hero.kind} was {hero.name}."),
        (f"What colour was {hero.name}'s {s.toy}?", f"{hero.name}'s {s.toy} was {s.colour}."),
        (f"Where did {hero.name} play?", f"{hero.name} played {s.place}."),
    ]


def shopping(rng: random.Random) -> list[Message]:
    """Draw a dialogue with a list to repeat."""
    name = rng.choice(words.GIRLS + words.BOYS)
    things = [a(thing) for thing in rng.sample(words.TOYS + words.SMALL_THINGS, rng.randint(2, 4))]
    sentence = f"{name} bought {listing(things)}."
    return messages([(f"{sentence} What did {name} buy?", sentence)])


def repeating(rng: random.Random) -> list[Message]:
    """Draw a dialogue that repeats words in random order, which only the text itself predicts."""
    known = words.TOYS + words.SMALL_THINGS + words.FOODS + words.COLOURS + words.ANIMALS + words.GIRLS + words.BOYS
    said = " ".join(rng.sample(known, rng.randint(3, 12)))
    return messages([(f"Say after me: {said}", said)])


KINDS: dict[Callable[[random.Random], list[Message]], float] = {
    recall: 0.45,
    small_talk: 0.10,
    counting: 0.08,
    knowledge: 0.03,
    told_story: 0.10,
    read_story: 0.08,
    shopping: 0.06,
    repeating: 0.10,
}
SYSTEM_MESSAGES = ["You are a helpful assistant.", "You are a kind helper.", "Answer in one short sentence."]


def dialogue(rng: random.Random) -> list[Message]:
    """Draw a dialogue of any kind; one in ten has a system message."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    system = [{"role": "system", "content": rng.choice(SYSTEM_MESSAGES)}] if rng.random() < 0.1 else []
    return system + kind(rng)
