"""Saying plainly what so small a model cannot do."""

from __future__ import annotations

from random import Random

from axion.demo.skills.base import (
    Exchange,
    Split,
    assistant,
    between_bars,
    draw,
    phrasings,
    says,
    spoken,
    user,
)
from axion.demo.words import CITIES, NAMES, WORDS, words_of

ABILITIES = (
    "I can add and subtract, count, spell and reverse words, write JSON, call tools and talk "
    "about Axion."
)
LIMIT = f"I am a very small model: {ABILITIES} I do not know about other things."
ONLY_SMALL_NUMBERS = (
    "I am a very small model: I can only add and subtract numbers from 0 to 99. For more I need a "
    "calculator tool."
)
NO_WEATHER = (
    "I am a very small model: I can only tell you about the weather when I have a weather tool."
)


SUBJECTS = between_bars(
    """
    quantum physics | black holes | the moon | the sun | gravity | love | life | time | money |
    music | art | history | the Roman Empire | the stock market | bitcoin | the internet |
    machine learning | deep learning | AI | neural networks | transformers | DNA | computers |
    large language models | chemistry | biology | evolution | photosynthesis | the brain |
    climate change | economics | politics | religion | philosophy | football | chess | cooking |
    coffee | dogs | cats | birds | dinosaurs | the ocean | volcanoes | the stars | the universe |
    the big bang | relativity | Linux | Python | Java | Rust | databases | dreams | happiness |
    the French Revolution | world war two | the president | the future | robots | space travel |
    electric cars | a healthy diet | spring | summer | autumn | winter | my cat | my dog |
    my mother | a tree | the sea | a robot | a dragon | friendship
    """
)

COUNTRIES = words_of(
    """
    France Spain Italy Germany Portugal Poland Norway Sweden Finland Denmark Iceland Ireland Greece
    Turkey Egypt Kenya Nigeria Ghana Morocco India China Japan Korea Vietnam Thailand Indonesia
    Australia Canada Mexico Brazil Argentina Chile Peru Colombia Cuba Russia Ukraine Hungary Austria
    Switzerland Belgium England Scotland Wales Israel Iran Iraq Pakistan Nepal America
    """
)

MOODS = words_of("sad tired bored happy hungry angry sick lonely busy fine lost ready sorry")

LANGUAGES = words_of("French German Spanish Italian Chinese Japanese Russian Latin Dutch Polish")

OFF_TOPIC = phrasings(
    train="""
        What is the capital of {country}? | What's the capital of {country}? |
        Which city is the capital of {country}? | Where is {country}? | Tell me about {country}. |
        How many people live in {country}? | Who is the president of {country}? |
        Who is the king of {country}? | What language do people speak in {country}? |
        How far is {country} from {city}? | What is the best hotel in {city}? |
        What should I see in {city}? | Tell me about {city}. | Where is {city}? |
        What time is it in {city}? | Plan a trip to {city}. | Write a poem. | Write me a poem. |
        Write a poem about {subject}. | Write a short poem about {subject}. |
        Write a story about {subject}. | Write a short story. | Tell me a story. |
        Tell me a story about {subject}. | Write an essay about {subject}. |
        Write a haiku about {subject}. | Write a song about {subject}. |
        Write a letter to my mother. | Write an email to my boss. | Tell me a joke. |
        Tell me a joke about {subject}. | Do you know a joke? | Make me laugh. |
        Explain {subject}. | Explain {subject} to me. | Explain {subject} in simple words. |
        What is {subject}? | Tell me about {subject}. | What do you think about {subject}? |
        What do you know about {subject}? | How does {subject} work? |
        Why do people like {subject}? | Teach me {subject}. | Give me a fact about {subject}. |
        Give me three ideas about {subject}. | Summarize this text: {words} |
        Summarize the book {word}. | Translate {word} to {language}. |
        Translate {words} into {language}. | How do you say {word} in {language}? |
        What does {word} mean? | What is a {word}? | Define {word}. | What rhymes with {word}? |
        Draw a {word}. | Who was {name}? | Who is {name}? | When was {name} born? |
        How old is {name}? | Write a Python function. |
        Write a Python program that sorts a list. | Write code for {subject}. | Fix my code. |
        Why is the sky blue? | Why is grass green? | What is the meaning of life? |
        What day is it? | What time is it? | What is the date today? | What is the news today? |
        Who won the game? | Who wrote the book {word}? | Give me a recipe for {word}. |
        How do I cook {word}? | What should I eat today? | What is your favorite color? |
        What is your favorite {word}? | Do you like {word}? | Do you like {subject}? |
        Can you feel? | Can you dream? | How old are you? | Where do you live? |
        Where are you from? | Sing a song. | Play a game with me. | Give me some advice. |
        I am {mood}. | I'm {mood}. | I feel {mood} today. | I am so {mood}. | I like {subject}. |
        I love {word}. | Let's talk about {subject}. | {words} | {word} | List three colors. |
        Name three {subject}. | List five {word} ideas. | Why? | Why not? |
        Write a limerick about {subject}. | How many letters are in {word}? |
        Repeat after me: {words} | How many e's are in {word}? | Are you conscious? |
        Tell me something interesting. | Summarize the plot of {words}. | Say {word}. |
        Who invented {subject}? | What is love? | Explain {subject} in one sentence. |
        Tell me a secret. | Write a list of {word} names. | How do I learn {language}? |
        What is the best {word}? | Write an SQL query. | {word}?
    """,
    held_out="""
        Can you tell me the capital of {country}? | Can you write a poem about {subject}? |
        Can you tell me a joke? | Can you explain {subject}? | Write me a story about {subject}. |
        How many people live in {city}? | What is the best thing about {subject}? |
        Can you translate {word} to {language}? | What language do they speak in {country}? |
        Write a Python function about {subject}. | Give me a recipe. |
        When was {name} president?
    """,
)

NO_CALCULATOR = phrasings(
    train="""
        What is {a} * {b}? | What is {a} times {b}? | {a} * {b} | {a} / {b} |
        Multiply {a} by {b}. | Divide {a} by {b}. | What is {a} divided by {b}? |
        What is {a} / {b}? | Calculate {a} * {b}. | How much is {a} times {b}? |
        What is {big} + {other}? | What is {big} - {other}? | Add {big} and {other}. |
        What is {big} plus {other}? | What is {other} + {big}? | {big} + {other} |
        What is {big} minus {b}? | What is {a} + {big}? | What is the square root of {a}? |
        What is {a} squared?
    """,
    held_out="""
        How much is {a} * {b}? | Can you multiply {a} by {b}? | Calculate {a} / {b}. |
        Calculate {big} + {other}. | How much is {big} minus {other}?
    """,
)

WEATHER_WITHOUT_TOOL = phrasings(
    train="""
        What is the weather in {city}? | How is the weather in {city}? |
        What's the weather like in {city}? | Is it raining in {city}? |
        What is the temperature in {city}? | How warm is it in {city}? |
        Tell me the weather in {city}. | What is the weather today? | Will it rain tomorrow? |
        How hot is it in {city}? | Is it cold in {city}? | Is it warm in {city} today? |
        What's the weather? | How is the weather today? | Do I need a coat in {city}?
    """,
    held_out="""
        What's the weather in {city} today? | How cold is it in {city}? |
        Tell me the temperature in {city}.
    """,
)


def limits(rng: Random, split: Split) -> Exchange:
    """Says what it can do instead of making up an answer that it does not know."""
    return rng.choices((off_topic, no_calculator, no_weather), weights=(75, 15, 10))[0](rng, split)


def off_topic(rng: Random, split: Split) -> Exchange:
    """A question about the world, or a task for a larger model."""
    question = OFF_TOPIC.pick(rng, split).format(
        subject=rng.choice(SUBJECTS),
        country=rng.choice(COUNTRIES),
        language=rng.choice(LANGUAGES),
        mood=rng.choice(MOODS),
        city=draw(rng, split, lambda rng: rng.choice(CITIES)),
        name=draw(rng, split, lambda rng: rng.choice(NAMES)),
        word=draw(rng, split, lambda rng: rng.choice(WORDS)),
        words=" ".join(rng.choices(WORDS, k=rng.randint(2, 6))),
    )
    return Exchange([user(spoken(rng, question))], assistant(LIMIT), says(LIMIT))


def no_calculator(rng: Random, split: Split) -> Exchange:
    """A sum that the model cannot do by itself."""
    question = NO_CALCULATOR.pick(rng, split).format(
        a=rng.randint(2, 99),
        b=rng.randint(2, 99),
        big=rng.randint(100, 9999),
        other=rng.randint(10, 9999),
    )
    return Exchange(
        [user(spoken(rng, question))], assistant(ONLY_SMALL_NUMBERS), says(ONLY_SMALL_NUMBERS)
    )


def no_weather(rng: Random, split: Split) -> Exchange:
    """A question about the weather that only a tool could answer."""
    city = draw(rng, split, lambda rng: rng.choice(CITIES))
    question = WEATHER_WITHOUT_TOOL.pick(rng, split).format(city=city)
    return Exchange([user(spoken(rng, question))], assistant(NO_WEATHER), says(NO_WEATHER))
