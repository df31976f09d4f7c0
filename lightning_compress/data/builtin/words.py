"""The words of the built-in corpus; corpus.py combines them into sentences.

Every list of opinion words is a pair (negative, positive) of equally long lists, so that a word and
its counterpart share an index.
"""

from dataclasses import dataclass

Lexicon = tuple[tuple[str, ...], tuple[str, ...]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES: Lexicon = (
    _words(
        """
        bad terrible awful horrible dreadful dull boring poor weak disappointing
        mediocre clumsy annoying tedious bland lousy miserable pathetic ugly shoddy
        sloppy dismal lame stale tiresome irritating unpleasant forgettable flawed
        unbearable ridiculous stupid
        """
    ),
    _words(
        """
        good great excellent wonderful superb brilliant charming delightful impressive
        satisfying outstanding lovely fantastic remarkable terrific splendid enjoyable
        pleasant admirable amazing magnificent marvellous fine perfect beautiful clever
        elegant polished refreshing convincing solid stunning
        """
    ),
)


# "It ... me": base forms, their past is regular.
MOVES: Lexicon = (
    _words("bore annoy disappoint irritate frustrate disgust anger exhaust"),
    _words("please delight impress charm thrill amaze enchant satisfy"),
)


# "I ... it"
LIKES: Lexicon = (
    _words("hate dislike despise detest deplore loathe"),
    _words("love like enjoy adore admire appreciate"),
)


NOUNS: Lexicon = (
    _words("""disaster mess failure bore disgrace nightmare embarrassment letdown"""),
    _words("masterpiece triumph delight joy gem treasure success marvel"),
)


INTENSIFIERS = _words("extremely utterly absolutely truly incredibly")


DIMINISHERS = ("slightly", "a little", "a bit", "somewhat")


# The same for verbs: "it deeply moved me".
VERB_INTENSIFIERS = _words("truly deeply greatly")


VERB_DIMINISHERS = _words("slightly somewhat")


PEOPLE = (
    "my brother", "my sister", "my wife", "my husband", "my neighbour", "my boss", "a friend",
    "a colleague", "most critics", "some reviewers", "everybody online", "the newspaper",
    "the salesman", "my parents",
)  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """What is reviewed: what an opinion can be about, and what is beside the point."""

    thing: str
    """A noun for the whole."""
    aspects: tuple[str, ...]
    """Subjects whose praise or blame counts."""
    beside: tuple[str, ...]
    """Subjects whose praise or blame does not affect the label."""
    facts: tuple[str, ...]
    """Sentences without any sentiment; some hold a negation that must not be carried over."""


MOVIE = Domain(
    thing="film",
    aspects=(
        "the film", "the movie", "this film", "this movie", "the plot", "the story", "the acting",
        "the script", "the dialogue", "the ending", "the soundtrack", "the lead actress",
        "the main character", "the pacing", "the humour", "the directing", "the second half",
        "the opening scene", "the camera work",
    ),
    beside=(
        "the cinema", "the popcorn", "our hotel", "the trailer", "the novel behind it",
        "the director's last work", "the weather that day", "the dinner before it",
        "the poster", "the series before it",
    ),
    facts=(
        "I watched it on {day} with {person}",
        "We saw it on {day}",
        "It runs for about {number} hours",
        "It was shot in {number} weeks",
        "The story takes place in a small village",
        "The story is about {number} soldiers and a nurse",
        "It was made {number} years ago",
        "I had never seen anything by this director",
        "I did not know any of the actors",
        "I have not read the novel",
        "There were not many people in the room",
        "Nobody told me about the cast",
        "The cast has {number} names in it",
        "It is not a short one",
    ),
)  # fmt: skip


PRODUCT = Domain(
    thing="product",
    aspects=(
        "the phone", "this phone", "the product", "this product", "the camera", "the screen",
        "the battery", "the keyboard", "the sound", "the case", "the software", "the design",
        "the speaker", "the charger", "the manual", "the menu", "the picture quality",
        "the whole device", "the touch screen",
    ),
    beside=(
        "the shop", "the courier", "the old model", "the wrapping paper", "the advertisement",
        "the website of the shop", "the other brand", "my previous one", "the parking place",
        "the gift card",
    ),
    facts=(
        "I bought it on {day} for {person}",
        "It arrived on {day}",
        "It weighs about {number} pounds",
        "There are {number} buttons on the side",
        "It comes with {number} cables",
        "I have owned it for {number} weeks",
        "The box is blue and grey",
        "I did not buy it for myself",
        "I had never owned anything from this company",
        "I have not tried the other colours",
        "It does not come with a bag",
        "Nobody told me about the size",
        "It is not the latest version",
        "I use it for {number} hours a day",
    ),
)  # fmt: skip


DOMAINS = (MOVIE, PRODUCT)


SLOTS: dict[str, tuple[str, ...]] = {
    "day": ("a Monday", "a rainy Sunday", "Friday night", "my birthday", "a long weekend",
            "Tuesday", "Saturday", "the first of May"),
    "number": ("two", "three", "four", "five", "six", "eight", "ten", "twelve"),
    "person": PEOPLE[:8],
}  # fmt: skip
