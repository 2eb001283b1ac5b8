"""The text that the tiny tokenizers are trained on. Written for this project; nothing is quoted."""

import random

PARAGRAPHS = [
    "The river bends twice before it reaches the mill, and the miller knows both bends by heart.",
    "A careful measurement is worth more than a clever guess; write the number down, then the unit.",
    "She said: \"It isn't late, we've got an hour.\" He wasn't sure, but he'd wait; they'll come, I'm certain.",
    "Prices rose from 3 to 12.50 in 2024, then 1,000,000 people asked why 7 x 8 = 56 and not 65.",
    "def area(width, height):\n    if width < 0 or height < 0:\n        raise ValueError(\"negative side\")\n    return width * height\n",
    "for (let i = 0; i < 10; i++) {\n\tconsole.log(`row ${i}`);\n}\n",
    "Der Fluß fließt über die Wiese, und die Vögel hören nicht auf zu singen.",
    "Où est la clé ? Elle est près de la fenêtre, à côté du café froid.",
    "El niño comió piñas mañana y tarde; ¡qué alegría, qué día!",
    "Река течёт медленно, и рыбак ждёт на берегу до самого вечера.",
    "川は静かに流れています。山の上に雪が見えます。",
    "今天天气很好，我们去河边散步，然后喝茶。",
    "강은 천천히 흐르고 아이들은 웃는다.",
    "يجري النهر ببطء والناس ينتظرون عند الجسر.",
    "नदी धीरे बहती है और बच्चे किनारे पर खेलते हैं।",
    "Two spaces  here, three   there, and a tab\tin between. Then nothing at all.",
    "Once there was a small lamp who wanted to see the sea. The lamp asked the wind, and the wind laughed.",
    "\"Where do the waves go?\" asked the lamp. \"They go home,\" said the wind, \"and then they go again.\"",
]

SUBJECTS = ["the lamp", "a fox", "the old baker", "my sister", "the wind", "a small boat", "the teacher"]
VERBS = ["finds", "carries", "forgets", "paints", "follows", "counts", "remembers", "opens"]
OBJECTS = ["the blue door", "seven stones", "a letter", "the morning", "her coat", "an apple", "the song"]
PLACES = ["by the river", "under the bridge", "in the kitchen", "at night", "before the rain", "on the hill"]


def lines(count: int = 400, seed: int = 7) -> list[str]:
    """The paragraphs, then `count` sentences from a small grammar; the same ones every time."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        s, v, o, p = (rng.choice(x) for x in (SUBJECTS, VERBS, OBJECTS, PLACES))
        made.append(f"{s[0].upper()}{s[1:]} {v} {o} {p}.")
    return PARAGRAPHS * 4 + made
