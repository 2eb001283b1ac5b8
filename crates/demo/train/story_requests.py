"""Makes chat requests from stories, without a model: nouns, names, first sentences and titles.

A story gives some conversations. What the user asks for is always in the
story that answers, so a small model can learn to follow the request.
"""

import re

SYSTEMS = [
    "You are a friendly storyteller.",
    "You tell short stories for young children.",
    "You are a helpful assistant who likes stories.",
    "Answer in simple words.",
]

NOUNS = set(
    """
    airplane ant apple baby bag ball balloon banana barn basket bat bath beach bear bed bee bell bench bike bird
    biscuit blanket block boat book bottle bowl box boy branch bread bridge brother brush bubble bucket bug bunny bus
    butterfly button cabin cake camel camera candle candy cap car carrot castle cat caterpillar cave chair cheese
    cherry chicken circle clock cloud clown coat cookie corn cow crab crayon crocodile crown cup deer desert dinosaur
    doctor dog doll donkey door dragon drawing dress drum duck eagle egg elephant engine fairy farm farmer
    feather fence field fire fish flag flower forest fountain fox friend frog fruit game garden gate ghost giant
    gift giraffe girl glove goat grandma grandpa grass guitar hammer hat hen hill hippo hole honey horse hospital
    house ice island jacket jam jar jelly juice jungle kangaroo key king kite kitten kitchen ladder lake lamb lamp
    leaf lemon letter library lion lizard log lunch machine map market mask milk mirror monkey monster moon
    mountain mouse mud mushroom music nest net nose nurse nut ocean orange owl painting pan panda park parrot
    party peach pear pen pencil penguin phone piano picnic picture pie pig pillow pirate pizza plane planet plant
    plate pond pony potato present prince princess pumpkin puppy puzzle queen rabbit rain rainbow ribbon ring river
    road robot rock rocket roof room rope sand sandwich scarf school sea seed shark sheep shell ship shirt shoe
    shop sister sky sled snail snake snow snowman soap sock song soup spider spoon squirrel star stick stone store
    storm strawberry sun swan sweater swing table tail tea teacher teddy tent tiger tomato tooth towel tower town toy
    train treasure tree truck turtle umbrella vase vegetable village wagon wall water whale wheel whistle
    wind window wing wizard wolf wood worm yard zebra zoo
    """.split()
)

NO_ARTICLE = {"bread", "candy", "cheese", "corn", "grass", "honey", "ice", "jam", "jelly", "juice", "milk", "mud"} | {
    "music", "rain", "sand", "snow", "soap", "soup", "tea", "water", "wood", "grandma", "grandpa", "fruit", "fire"
}
WITH_THE = {"sun", "moon", "sky", "sea", "ocean", "wind", "beach", "zoo", "rainbow"}
THEMES = {
    "shar": "sharing",
    "friend": "friendship",
    "birthday": "a birthday",
    "brave": "being brave",
    "scared": "being afraid",
    "lost": "getting lost",
    "sorry": "saying sorry",
    "kind": "being kind",
    "rain": "a rainy day",
    "snow": "a day in the snow",
    "party": "a party",
    "school": "school",
    "help": "helping others",
    "dream": "a dream",
    "magic": "magic",
    "patient": "being patient",
    "careful": "being careful",
    "listen": "listening to your parents",
}

ABOUT = [
    "Tell me a story about {x}.",
    "Tell me a short story about {x}.",
    "Can you tell me a story about {x}?",
    "Write a story about {x}.",
    "Write a short story about {x}.",
    "Please write a story about {x}.",
    "I want to hear a story about {x}.",
    "I would like a story about {x}, please.",
    "Make up a story about {x}.",
    "Could you write me a little story about {x}?",
    "A story about {x}, please!",
    "Do you know a story about {x}?",
    "tell me a story about {x}",
    "write a story about {x}",
    "Give me a bedtime story about {x}.",
]
WORDS = [
    "Write a story with the words {x}.",
    "Use these words in a story: {x}.",
    "Tell me a story with {x} in it.",
    "Write a short story that uses the words {x}.",
]
STARTS = [
    "Write a story that starts with: {x}",
    'Write a story that begins with "{x}"',
    "Start a story with this sentence: {x}",
    "{x} Tell me the whole story.",
]
NEXT = [
    "{x}\n\nWhat happened next?",
    "{x}\n\nWhat happens next?",
    "Continue this story: {x}",
    "Finish this story: {x}",
    "How does this story go on? {x}",
]
TITLED = [
    'Tell me a story called "{x}".',
    'Write a story with the title "{x}".',
    'Tell me the story of "{x}".',
]
ANY = ["Tell me a story.", "Tell me a story!", "Can you tell me a story?", "Write a short story.", "I am bored. Tell me a story."]
ANY += ["Please tell me a bedtime story.", "Do you know a good story?", "tell me a story"]
NAME_ASKED = ["What was the {w}'s name?", "What was the name of the {w}?", "Who was the {w} in the story?"]

ABOUT_ME = [
    "I am a very small language model. I like to tell stories.",
    "I am a little story model. I can tell you a short story.",
    "I am a tiny model that learned to read from children's stories.",
]
HELLO = ["Hello! Would you like to hear a story?", "Hi! What story shall I tell you?", "Hello there! How are you today?"]
THANKS = ["You are welcome! Would you like another story?", "You are welcome!", "I am glad you liked it!"]
CAN = [
    "I can tell short stories. Ask me for a story about a cat, a boat or a dragon!",
    "I can write little stories. Tell me what the story should be about.",
]
BYE = ["Goodbye! Come back soon for another story.", "Bye! Have a nice day.", "Good night! Sleep well."]
WELL = ["I am fine, thank you! How are you?", "I am very happy today. Shall I tell you a story?"]
GREETINGS = (
    [(q, a) for q in ("Hello", "Hello!", "Hi", "Hi!", "hi there", "Hey!", "Good morning!", "hello") for a in HELLO]
    + [(q, a) for q in ("Thank you!", "Thanks!", "Thank you, that was nice.", "That was a good story!") for a in THANKS]
    + [(q, a) for q in ("Who are you?", "What are you?", "Are you a person?", "What is your name?") for a in ABOUT_ME]
    + [(q, a) for q in ("What can you do?", "Can you help me?", "What do you know?", "Help") for a in CAN]
    + [(q, a) for q in ("Goodbye!", "Bye!", "Good night!", "I have to go now.") for a in BYE]
    + [(q, a) for q in ("How are you?", "How are you today?", "How do you feel?") for a in WELL]
)


def turn(user, assistant):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def greeting_chats(rng, count):
    for _ in range(count):
        yield [m for pair in rng.sample(GREETINGS, rng.choice((1, 1, 2))) for m in turn(*pair)]


def phrase(noun):
    if noun in NO_ARTICLE:
        return noun
    if noun in WITH_THE:
        return f"the {noun}"
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def join(parts):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def topics(text):
    """Nouns of the story that matter most: said often, and said early."""
    words = re.findall(r"[a-z]+", text.lower())
    score = {}
    for i, word in enumerate(words):
        for form in (word, word[:-1] if word.endswith("s") else "", word[:-2] if word.endswith("es") else ""):
            if form in NOUNS:
                score[form] = score.get(form, 0) + (2 if i < len(words) / 3 else 1)
                break
    plain = {"girl", "boy", "friend"}
    return sorted((n for n in score if score[n] >= 3), key=lambda n: (n in plain, -score[n]))[:4]


def hero(text):
    """The kind and name of the main character, if the story says `a ... girl named Lily`."""
    m = re.search(r"\ban? (?:[a-z]+,? )*?([a-z]+) (?:named|called) ([A-Z][a-z]+)\b", text[:400])
    return (m.group(1), m.group(2)) if m and m.group(1) in NOUNS else None


def sentences(text):
    return re.findall(r"\S.*?[.!?][\"']?(?=\s|$)", text)


def described(noun, text):
    """The noun with the words that describe it where the story first brings it in, as `a big red ball`."""
    m = re.search(rf"\ban? (?:[a-z]+,? ){{1,2}}{noun}\b", text)
    return m.group(0) if m and not re.search(r"\b(of|and|in|to|for|with|was|day|the)\b", m.group(0)) else phrase(noun)


def clause(text):
    """`a bear who liked to sing`, if the story begins with such words."""
    m = re.search(r"there (?:was|lived) (an? [^.,\"]{3,40} (?:who|that) [^.,\"]{4,50})[.,]", text[:300])
    return m.group(1) if m else None


def theme(text, rng):
    lower = text.lower()
    found = [THEMES[stem] for stem in THEMES if len(re.findall(rf"\b{stem}", lower)) >= 2]
    return rng.choice(found) if found else None


def chats_from_story(text, rng, titled=False, count=3):
    """Conversations that all end in this story; fewer than `count` where nothing can be asked."""
    title = None
    if titled:
        title, _, rest = text.partition("\n")
        title, text = title.strip(), rest.strip()
    made = [one_chat(text, title, rng) for _ in range(count)]
    return [m for m in made if m]


def main_subject(text, nouns, who, rng):
    """Words for what the story is about, to come after `a story about`."""
    found = clause(text) if rng.random() < 0.4 else theme(text, rng) if rng.random() < 0.15 else None
    if found:
        return found
    if who and rng.random() < 0.3:
        named = f"{phrase(who[0])} named {who[1]}"
        more = nouns and nouns[0] != who[0] and rng.random() < 0.4
        return f"{named} and {phrase(nouns[0])}" if more else named
    if nouns:
        say = (lambda n: described(n, text)) if rng.random() < 0.4 else phrase
        return join([say(n) for n in nouns[: rng.choice((1, 1, 2, 2, 3))]])
    return None


def one_chat(text, title, rng):
    nouns, who, first = topics(text), hero(text), sentences(text)
    dice = rng.random()
    if title and dice < 0.6:
        return turn(rng.choice(TITLED).format(x=title), text)
    if dice < 0.06:
        return turn(rng.choice(ANY), text)
    if dice < 0.14 and first and len(first[0]) < 160 and text.startswith(first[0]):
        return turn(rng.choice(STARTS).format(x=first[0]), text)
    if dice < 0.26 and len(first) > 7:
        at = text.find(first[rng.choice((2, 3, 4))])
        if at > 40:
            return turn(rng.choice(NEXT).format(x=text[:at].strip()), text[at:])
    if dice < 0.36 and len(nouns) >= 3:
        return turn(rng.choice(WORDS).format(x=join(rng.sample(nouns, 3))), text)
    subject = main_subject(text, nouns, who, rng)
    if subject is None:
        return turn(rng.choice(ANY), text) if rng.random() < 0.2 else None
    messages = turn(rng.choice(ABOUT).format(x=subject), text)
    if who and rng.random() < 0.15:
        answer = rng.choice([f"The {who[0]} was named {who[1]}.", f"The name of the {who[0]} was {who[1]}."])
        messages += turn(rng.choice(NAME_ASKED).format(w=who[0]), answer)
    return messages
