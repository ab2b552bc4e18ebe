"""Greetings, thanks, goodbyes, and who it is that speaks."""

from __future__ import annotations

from random import Random

from axion.demo.skills.base import (
    Exchange,
    Split,
    about_topic,
    assistant,
    draw,
    phrasings,
    says,
    spoken,
    topic,
    user,
)
from axion.demo.skills.limits import ABILITIES
from axion.demo.words import NAMES

SMALL_TALK = (
    topic(
        "Hello! How can I help you?",
        """
        Hello | Hello! | Hi | Hi! | Hi there! | Hello there! | Hey | Hey there! | Hey! |
        Greetings! | Hello, model. | Hi, can you help me? | Hello Axion! | Hello, world! |
        Say hello. | Hi Axion | Hello, can you hear me? | Are you there? | Hello, are you there? |
        Hey, are you there? | Hi, can you hear me? | Test | Ping | Hello, I need some help. |
        Say hi. | Hello, I have a question. | Hola | Bonjour | Hallo | Ciao! |
        Hi, nice to meet you. | Yo | Good day! | Hello hello
        """,
        """
        Hey, hello! | Hi, hello there! | Hello, hello! | Hi! I need help. |
        Hey, can you help me? | Hi, are you there? | Hello, I need your help.
        """,
    ),
    topic(
        "Good morning! How can I help you?",
        """
        Good morning | Good morning! | Good morning, Axion. | Morning! | A good morning!
        """,
        """
        Good morning to you! | Hello, good morning!
        """,
    ),
    topic(
        "Good evening! How can I help you?",
        """
        Good evening | Good evening! | Good evening, Axion. | Evening! | A good evening!
        """,
        """
        Good evening to you! | Hello, good evening!
        """,
    ),
    topic(
        "I am well, thank you. How can I help you?",
        """
        How are you? | How are you doing? | How are you today? | Hello, how are you? |
        Hi, how are you? | How do you do? | How is it going? | Are you well? | What's up? |
        How do you feel? | How are things? | Hi! How are you doing? | How's it going?
        """,
        """
        Hello, how are you doing? | Hi, how are you today? | Hey, how are you? |
        How are you doing today? | How do you feel today?
        """,
    ),
    topic(
        "All right! How can I help you?",
        """
        OK | Ok. | Okay. | Yes | Yes. | No | No. | Sure. | Nice. | Cool! | Great! | Good. | Lol |
        Haha | Wow! | I see. | All right. | Yes, please. | No, thanks. | Never mind. | Hmm |
        Okay, good. | Ok, great! | Nice, okay. | Haha, great! | Wow, nice! | I see, good. |
        Yes, nice. | Yes, okay. | Cool, nice! | Haha, cool! | I see, okay. | Wow, great!
        """,
        """
        Okay, nice. | Ok, good. | Haha, nice! | Yes, great! | I see, nice.
        """,
    ),
    topic(
        "You have not told me your name.",
        """
        What is my name? | Who am I? | Do you know my name? | Tell me my name. | What's my name? |
        Do you remember my name? | Do you remember who I am? | Say my name.
        """,
        """
        Can you tell me my name? | Do you know who I am? | Can you say my name?
        """,
    ),
    topic(
        "This is a test.",
        """
        Say this is a test | Say this is a test! | Say: this is a test. | Say 'this is a test'
        """,
        """
        Can you say this is a test? | Say "this is a test".
        """,
    ),
    topic(
        "You are welcome!",
        """
        Thank you | Thank you! | Thanks | Thanks! | Thank you very much. | Many thanks! |
        Thanks a lot! | Great, thank you! | That helped, thanks. | Thank you for your help. |
        Good, thanks. | Perfect, thanks! | Thanks for the help! | Nice, thank you.
        """,
        """
        Thanks very much! | Great, thanks! | Thank you a lot! | That helped, thank you. |
        Perfect, thank you!
        """,
    ),
    topic(
        "Goodbye!",
        """
        Bye | Bye! | Goodbye | Goodbye! | Bye bye! | See you! | See you later. | Ciao |
        Good night! | I have to go, bye. | I have to go. Goodbye! | I must go now. |
        Goodbye, model. | Bye, see you later. | Goodbye, see you! | Bye, goodbye! |
        Goodbye, thanks. | I must go, goodbye. | See you tomorrow. | Thanks, bye! | Good bye.
        """,
        """
        Goodbye, see you later. | Bye, see you! | I have to go, goodbye. | Goodbye, good night!
        """,
    ),
    topic(
        "I am the small demo model that comes with Axion.",
        """
        Who are you? | What are you? | What is your name? | Tell me who you are. | Your name? |
        What model are you? | Which model are you? | Which model is this? | Who made you? |
        Who built you? | Who created you? | Are you a robot? | Hello, who are you? |
        Who am I talking to? | Are you ChatGPT? | Are you an AI? | Introduce yourself. |
        What's your name? | Are you human? | What kind of model are you? | Do you have a name? |
        Tell me about yourself. | Who is this? | What LLM are you?
        """,
        """
        Hi, who are you? | Tell me what you are. | Can you tell me who you are? |
        Tell me your name. | Hello, what is your name? | What model is this?
        """,
    ),
    topic(
        ABILITIES,
        """
        What can you do? | What can you do for me? | What can I ask you? | Help | Help me. |
        How can you help me? | What are you able to do? | What do you know? | Can you help? |
        Tell me what you can do. | Tell me all you know. | Tell me what you are able to do. |
        Say what you know. | Hi, what can you do? | Hello! What can you do? |
        What are your skills? | What are you good at? | List your skills. |
        What should I ask you? | What can this model do? | What questions can you answer? |
        What else can you do? | What are your abilities?
        """,
        """
        Hello, what can you do? | Can you tell me what you can do? | Tell me what you know. |
        What can you help me do? | What can I ask you to do? | What are you able to help with?
        """,
    ),
)

MY_NAME_IS = phrasings(
    train="""
        My name is {n}. | I am {n}. | Hello, my name is {n}. | Hi, I am {n}. | Hello, I'm {n}. |
        I'm {n}. | Hi! My name is {n}. | You can call me {n}. | Call me {n}. | Hey, I am {n}. |
        Hey! My name is {n}. | Hello! My name is {n}. | Hi, I'm {n}. | Good morning, I am {n}. |
        Hello there, I am {n}, nice to meet you.
    """,
    held_out="""
        Hello! I am {n}. | Hi, my name is {n}. | Hi! I'm {n}. | Hey, my name is {n}.
    """,
)


WHAT_IS_MY_NAME = phrasings(
    train="""
        What is my name? | Who am I? | Do you know my name? | Tell me my name. | What's my name? |
        Do you remember my name? | What did I say my name was? | Do you remember who I am? |
        Say my name. | Can you remember my name? | Could you tell me who I am? |
        And what is my name? | Now tell me who I am. | Who am I again?
    """,
    held_out="""
        Can you tell me my name? | Do you know who I am? | Can you say my name?
    """,
)


def greet(rng: Random, split: Split) -> Exchange:
    """Greetings, thanks, goodbyes, and who it is that speaks."""
    if rng.random() < 0.1:
        name = draw(rng, split, lambda rng: rng.choice(NAMES))
        question = spoken(rng, MY_NAME_IS.pick(rng, split).format(n=name), polite=False)
        answer = f"Nice to meet you, {name}!"
        return Exchange([user(question)], assistant(answer), says(answer))
    return about_topic(rng, split, SMALL_TALK, polite=False)
