"""The book's language, written down: six topics, four stages of a story, one small grammar.

Nothing here is learned or drawn. A document has a topic and tells a story in four stages; the
tables say which words belong to what, and `compile_story` turns them into the arrays of a hidden
Markov model. Conventions of the tables:

* words stand in the order of their frequency, by a flat Zipf law: weight rank ** -0.7; where a
  list depends on the topic alone, each stage begins at another place of it;
* ``big|large`` are synonyms: they share their place in the list, 60 to 40;
* a compound is (stems, suffix): every stem forms one word with the suffix;
* a phrase is a string whose words always follow each other; so is a name of two parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np

STAGES = ("opening", "quest", "trouble", "ending")

EXPONENT = 0.7  # of Zipf's law

# The words of all topics and stages
DETERMINERS = "the this her that his every"
PREPOSITIONS = "in near from behind toward beyond under beside"
AGENTS = "girl|maiden boy stranger friend child"
THINGS = "box coat book bread candle"
PLACES = "house river|stream road town wood"

NOUNS_OF_TOPIC = 0.7  # the others are AGENTS, THINGS, PLACES
MODIFIERS_OF_TOPIC = 0.4  # adjectives and verbs; the others belong to the stage
FIRST_PERSON = 0.65  # how often the first of the topic's two people acts where both do


@dataclass(frozen=True)
class Topic:
    """The words of one topic."""

    agents: str
    things: str
    places: str
    adjectives: str
    transitive: str
    intransitive: str
    compound_agents: tuple[str, str]
    compound_places: tuple[str, str]
    people: tuple[str, str]
    named_place: str
    phrase: str


@dataclass(frozen=True)
class Stage:
    """The words of one stage of the story, whatever the topic."""

    openers: str
    phrase: str
    adjectives: str
    transitive: str
    intransitive: str
    adverbs: tuple[str, str]
    negated_adverbs: str = ""
    advance: float = 0.4


TOPICS = {
    "sea": Topic(
        agents="captain sailor|seaman pilot diver cook mate",
        things="net anchor rope sail chart barrel pearl",
        places="harbour|port beach island reef deck",
        adjectives="salty wet calm stormy windy",
        transitive="hauls steers mends lifts",
        intransitive="sails drifts swims dives",
        compound_agents=("fisher helms", "man"),
        compound_places=("light boat", "house"),
        people=("anna moor", "tom reed"),
        named_place="north bay",
        phrase="against the wind",
    ),
    "farm": Topic(
        agents="farmer shepherd miller maid gardener beekeeper",
        things="plough basket lamb apple egg cart seed",
        places="barn meadow|pasture field orchard stable",
        adjectives="muddy green ripe sunny fertile",
        transitive="plants feeds carries milks",
        intransitive="digs toils naps whistles",
        compound_agents=("dairy plough", "man"),
        compound_places=("farm green", "house"),
        people=("mary brook", "peter hill"),
        named_place="apple valley",
        phrase="before the rain",
    ),
    "market": Topic(
        agents="merchant|trader baker tailor buyer clerk weaver",
        things="coin cloth purse spice silk loaf scale",
        places="shop|store square stall street bank",
        adjectives="cheap busy fresh precious fine",
        transitive="buys sells weighs orders",
        intransitive="haggles pays counts shouts",
        compound_agents=("trades sales", "man"),
        compound_places=("ware customs", "house"),
        people=("clara stone", "john price"),
        named_place="mill lane",
        phrase="at half price",
    ),
    "mountain": Topic(
        agents="climber guide hunter hermit scout ranger",
        things="lantern tent map boot axe stone flag",
        places="summit|peak cave ridge glacier pass",
        adjectives="steep icy snowy misty wild",
        transitive="packs lights wraps drags",
        intransitive="climbs hikes slips camps",
        compound_agents=("woods hunts", "man"),
        compound_places=("guest tree", "house"),
        people=("erik frost", "ida berg"),
        named_place="eagle rock",
        phrase="above the clouds",
    ),
    "castle": Topic(
        agents="king queen knight guard jester page",
        things="crown sword shield throne letter ring banner",
        places="hall tower court chapel garden",
        adjectives="royal golden proud grand|splendid stately",
        transitive="polishes raises guards admires",
        intransitive="kneels bows reigns dances",
        compound_agents=("noble swords", "man"),
        compound_places=("gate bath", "house"),
        people=("rosa lyon", "arthur vane"),
        named_place="black keep",
        phrase="behind closed doors",
    ),
    "railway": Topic(
        agents="driver porter conductor passenger engineer inspector",
        things="ticket trunk whistle lamp parcel signal wagon",
        places="station platform tunnel bridge depot",
        adjectives="crowded noisy|loud late rusty smoky",
        transitive="stamps loads repairs checks",
        intransitive="departs travels boards hurries",
        compound_agents=("signal brake", "man"),
        compound_places=("round power", "house"),
        people=("henry watts", "ella marsh"),
        named_place="union junction",
        phrase="along the line",
    ),
}

STORY = (
    Stage(
        openers="today here often",
        phrase="once upon a time",
        adjectives="old|aged young small|little gentle",
        transitive="likes|loves owns keeps knows",
        intransitive="lives|dwells waits rests",
        adverbs=("quiet peaceful sweet", "ly"),
    ),
    Stage(
        openers="then|next soon later",
        phrase="after a while",
        adjectives="brave curious strong eager",
        transitive="finds|discovers takes seeks wants",
        intransitive="leaves walks|strolls looks",
        adverbs=("quick|swift bold eager", "ly"),
    ),
    Stage(
        openers="but|yet suddenly meanwhile",
        phrase="all at once",
        adjectives="angry lost broken dark",
        transitive="loses drops hides|conceals breaks",
        intransitive="falls cries|weeps runs",
        adverbs=("sad wild fierce", "ly"),
        negated_adverbs="fair wise kind",
    ),
    Stage(
        openers="finally so now",
        phrase="in the end",
        adjectives="happy|glad rich tired|weary safe",
        transitive="returns saves|rescues shows gives",
        intransitive="sleeps smiles|grins sings",
        adverbs=("warm safe proud", "ly"),
    ),
)

# From a node of the grammar to the next ones. "start" is the place between two sentences.
GRAMMAR = {
    "start": {"opener": 0.20, "phrase": 0.08, "determiner": 0.56, "person": 0.16},
    "opener": {"determiner": 0.75, "person": 0.25},
    "phrase": {"determiner": 0.75, "person": 0.25},
    "determiner": {"adjective": 0.45, "agent": 0.45, "compound agent": 0.10},
    "adjective": {"agent": 0.85, "compound agent": 0.15},
    "agent": {"transitive": 0.55, "intransitive": 0.45},
    "compound agent": {"transitive": 0.55, "intransitive": 0.45},
    "person": {"transitive": 0.55, "intransitive": 0.45},
    "transitive": {"object determiner": 1.0},
    "intransitive": {"preposition": 0.45, "topic phrase": 0.1, "adverb": 0.25, "stop": 0.2},
    "object determiner": {"object adjective": 0.4, "thing": 0.6},
    "object adjective": {"thing": 1.0},
    "thing": {"preposition": 0.35, "topic phrase": 0.1, "adverb": 0.1, "stop": 0.45},
    "preposition": {"place determiner": 0.85, "named place": 0.15},
    "place determiner": {"place": 0.82, "compound place": 0.18},
    "place": {"stop": 1.0},
    "compound place": {"stop": 1.0},
    "named place": {"stop": 1.0},
    "topic phrase": {"stop": 1.0},
    "adverb": {"stop": 1.0},
    "stop": {"start": 1.0},
}

# A rare alternative is told in some stages only (stage numbers from 0).
TOLD_IN = {"second person": (1, 2), "named place": (0, 3), "topic phrase": (2,)}

Slot = dict[str, float]  # one state: its tokens and their probabilities
Chain = list[Slot]  # states that follow each other


@dataclass
class Story:
    """The compiled tables: everything that `HiddenMarkovLanguage` takes."""

    tokens: tuple[str, ...]
    initial: np.ndarray
    blocks: list[np.ndarray]
    emission: np.ndarray
    states: list[tuple[str, str, str]]
    words: tuple[tuple[str, ...], ...]
    phrases: tuple[tuple[str, ...], ...]
    entities: tuple[tuple[str, ...], ...]
    synonyms: tuple[tuple[str, str], ...]


def zipf(words: str, shift: int = 0) -> Slot:
    """Probabilities of the words of a list: weight rank ** -0.7, ranks rotated by ``shift``."""
    places = words.split()
    slot: Slot = {}
    for i, place in enumerate(places):
        weight = (1 + (i - shift) % len(places)) ** -EXPONENT
        pair = place.split("|")
        for token, share in zip(pair, (0.6, 0.4) if len(pair) == 2 else (1.0,), strict=True):
            slot[token] = weight * share
    return normalised(slot)


def normalised(slot: Slot) -> Slot:
    """The same weights with sum one."""
    total = sum(slot.values())
    return {token: weight / total for token, weight in slot.items()}


def mixed(first: Slot, second: Slot, share: float) -> Slot:
    """The mixture ``share * first + (1 - share) * second``."""
    tokens = dict.fromkeys((*first, *second))
    return {t: share * first.get(t, 0.0) + (1 - share) * second.get(t, 0.0) for t in tokens}


def compound(stems: str, suffix: str, shift: int = 0) -> Chain:
    """Two states: one of the stems, then the suffix."""
    return [zipf(stems, shift), {f"##{suffix}": 1.0}]


def fixed(text: str) -> Chain:
    """One state per word."""
    return [{word: 1.0} for word in text.split()]


def single_words(topic: Topic, stage: Stage, g: int) -> dict[str, Slot]:
    """The grammar nodes that are one state in one topic and stage."""

    def noun(own: str, common: str, shift: int) -> Slot:
        return mixed(zipf(own, shift), zipf(common), NOUNS_OF_TOPIC)

    def modifier(own: str, of_stage: str) -> Slot:
        return mixed(zipf(own, g), zipf(of_stage), MODIFIERS_OF_TOPIC)

    return {
        "opener": zipf(stage.openers),
        "determiner": zipf(DETERMINERS),
        "adjective": modifier(topic.adjectives, stage.adjectives),
        "agent": noun(topic.agents, AGENTS, g),
        "transitive": modifier(topic.transitive, stage.transitive),
        "intransitive": modifier(topic.intransitive, stage.intransitive),
        "object determiner": zipf(DETERMINERS),
        "object adjective": modifier(topic.adjectives, stage.adjectives),
        "thing": noun(topic.things, THINGS, 2 * g),
        "preposition": zipf(PREPOSITIONS, 2 * g),
        "place determiner": zipf(DETERMINERS),
        "place": noun(topic.places, PLACES, g),
        "stop": {".": 1.0},
    }


def chains(topic: Topic, stage: Stage, g: int) -> dict[str, list[tuple[float, Chain]]]:
    """The grammar nodes of several states: the alternatives and their weights."""
    first, second = map(fixed, topic.people)
    both = g in TOLD_IN["second person"]
    return {
        "phrase": [(1.0, fixed(stage.phrase))],
        "compound agent": [(1.0, compound(*topic.compound_agents, g))],
        "person": [(FIRST_PERSON, first), (1 - FIRST_PERSON, second)] if both else [(1.0, first)],
        "compound place": [(1.0, compound(*topic.compound_places, g))],
        "named place": [(1.0, fixed(topic.named_place))],
        "topic phrase": [(1.0, fixed(topic.phrase))],
        "adverb": adverbs(stage),
    }


def adverbs(stage: Stage) -> list[tuple[float, Chain]]:
    """Adverbs of two pieces and, where the stage has them, of three."""
    plain = compound(*stage.adverbs)
    if not stage.negated_adverbs:
        return [(1.0, plain)]
    stems = {f"##{stem}": p for stem, p in zipf(stage.negated_adverbs).items()}
    return [(0.7, plain), (0.3, [{"un": 1.0}, stems, {"##ly": 1.0}])]


def nodes(topic: Topic, stage: Stage, g: int) -> dict[str, list[tuple[float, Chain]]]:
    """The alternatives (weight, chain of states) of every grammar node told in this stage."""
    single = {name: [(1.0, [slot])] for name, slot in single_words(topic, stage, g).items()}
    table = single | chains(topic, stage, g)
    everywhere = range(len(STORY))
    return {n: table[n] for n in GRAMMAR if n in table and g in TOLD_IN.get(n, everywhere)}


@dataclass
class Block:
    """States and transitions of one topic while it is being compiled."""

    slots: list[Slot] = field(default_factory=list)
    names: list[tuple[str, str]] = field(default_factory=list)  # stage, node
    edges: dict[tuple[int, int], float] = field(default_factory=dict)
    starts: list[dict[int, float]] = field(default_factory=list)  # entry states, per stage
    stops: list[int] = field(default_factory=list)

    def add_chain(self, chain: Chain, stage: str, node: str) -> tuple[int, int]:
        """Append the states of a chain; its first and its last state."""
        first = len(self.slots)
        for slot in chain:
            self.slots.append(slot)
            self.names.append((stage, node))
        last = len(self.slots) - 1
        self.edges.update({(s, s + 1): 1.0 for s in range(first, last)})
        return first, last

    def add_stage(self, topic: Topic, stage: Stage, g: int) -> None:
        """All nodes of one stage and the edges of the grammar between them."""
        ends = {
            node: [(w, *self.add_chain(chain, STAGES[g], node)) for w, chain in alternatives]
            for node, alternatives in nodes(topic, stage, g).items()
        }
        for node, alternatives in ends.items():
            for _, _, last in alternatives if node != "stop" else ():
                self.edges.update({(last, s): p for s, p in entries(node, ends).items()})
        self.starts.append(entries("start", ends))
        self.stops.append(ends["stop"][0][2])

    def connect_stages(self) -> None:
        """After a full stop: another sentence of this stage, or the first one of the next."""
        for g, stop in enumerate(self.stops):
            advance = STORY[g].advance if g + 1 < len(self.stops) else 0.0
            moves = zip(self.starts[g:], (1 - advance, advance), strict=False)
            for start, share in moves:
                self.edges.update({(stop, s): share * p for s, p in start.items()})

    def transition(self) -> np.ndarray:
        """The transition matrix of the topic."""
        matrix = np.zeros((len(self.slots), len(self.slots)))
        for (s, t), p in self.edges.items():
            matrix[s, t] = p
        return matrix


def entries(node: str, ends: dict[str, list[tuple[float, int, int]]]) -> dict[int, float]:
    """First states after ``node`` and their probabilities; nodes untold in this stage drop out."""
    told = normalised({n: p for n, p in GRAMMAR[node].items() if n in ends})
    return {first: p * w for n, p in told.items() for w, first, _ in ends[n]}


def compile_block(topic: Topic) -> Block:
    """The states of one topic through all stages."""
    block = Block()
    for g, stage in enumerate(STORY):
        block.add_stage(topic, stage, g)
    block.connect_stages()
    return block


def compile_story() -> Story:
    """Turn the tables into the arrays and lists of a hidden Markov language."""
    blocks = {name: compile_block(topic) for name, topic in TOPICS.items()}
    slots = [slot for block in blocks.values() for slot in block.slots]
    tokens = tuple(dict.fromkeys(token for slot in slots for token in slot))
    column = {token: v for v, token in enumerate(tokens)}
    emission = np.zeros((len(slots), len(tokens)))
    for s, slot in enumerate(slots):
        for token, p in slot.items():
            emission[s, column[token]] = p
    first = [np.zeros(len(block.slots)) for block in blocks.values()]
    for row, block in zip(first, blocks.values(), strict=True):
        row[list(block.starts[0])] = np.array(list(block.starts[0].values())) / len(blocks)
    return Story(
        tokens=tokens,
        initial=np.concatenate(first),
        blocks=[block.transition() for block in blocks.values()],
        emission=emission,
        states=[(name, *state) for name, block in blocks.items() for state in block.names],
        words=tuple(story_words(tokens)),
        phrases=tuple(tuple(text.split()) for text in story_phrases()),
        entities=tuple(tuple(text.split()) for text in story_entities()),
        synonyms=tuple(story_synonyms()),
    )


def story_compounds() -> Iterator[tuple[str, ...]]:
    """The words of several pieces."""
    for topic in TOPICS.values():
        for stems, suffix in (topic.compound_agents, topic.compound_places):
            yield from product(stems.split(), [f"##{suffix}"])
    for stage in STORY:
        stems, suffix = stage.adverbs
        yield from product(stems.replace("|", " ").split(), [f"##{suffix}"])
        negated = [f"##{stem}" for stem in stage.negated_adverbs.split()]
        yield from product(["un"], negated, [f"##{suffix}"])


def story_words(tokens: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All words as tuples of pieces: those of one piece, then the compounds."""
    only_stem = {word[0] for word in story_compounds()} - free_tokens()
    yield from ((t,) for t in tokens if not t.startswith("##") and t not in only_stem)
    yield from story_compounds()


def free_tokens() -> set[str]:
    """Tokens that stand in a list of whole words, a phrase or a name."""
    texts = [DETERMINERS, PREPOSITIONS, AGENTS, THINGS, PLACES, *story_phrases(), *story_entities()]
    for topic in TOPICS.values():
        texts += [topic.agents, topic.things, topic.places, topic.adjectives]
        texts += [topic.transitive, topic.intransitive]
    for stage in STORY:
        texts += [stage.openers, stage.adjectives, stage.transitive, stage.intransitive]
    return {word for text in texts for word in text.replace("|", " ").split()}


def story_phrases() -> Iterator[str]:
    """The fixed phrases."""
    yield from (stage.phrase for stage in STORY)
    yield from (topic.phrase for topic in TOPICS.values())


def story_entities() -> Iterator[str]:
    """The names of two parts."""
    for topic in TOPICS.values():
        yield from (*topic.people, topic.named_place)


def story_synonyms() -> Iterator[tuple[str, str]]:
    """Pairs of interchangeable words."""
    texts = [topic.__dict__[key] for topic in TOPICS.values() for key in topic.__dict__]
    texts += [stage.__dict__[key] for stage in STORY for key in stage.__dict__]
    texts += [AGENTS, THINGS, PLACES]
    texts += [part for text in texts if isinstance(text, tuple) for part in text]
    for text in texts:
        for place in text.split() if isinstance(text, str) else ():
            if "|" in place:
                first, second = place.split("|")
                yield first, second
