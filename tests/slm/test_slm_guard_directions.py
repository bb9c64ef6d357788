"""Stage directions of open kinds and what only looks like them; the head's rows and its laws."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.slm.guard import PersonalityGuard
from mlx_companion.slm.guard_direction_rows import direction_rows, narrated, present
from mlx_companion.slm.guard_directions import word_class
from mlx_companion.slm.guard_marked import pieces
from mlx_companion.slm.guard_text import Draft

GUARD = PersonalityGuard(level="monitor")
MENDING = PersonalityGuard()

ACTIONS = r"""
*the door creaks open* Someone there?
*a raven lands on your shoulder* He likes you.
*long pause* I suppose.
*dramatic drum roll* The answer is 12.
*taps the clock* Time's nearly up.
*fans it hopefully* The fire should catch soon.
*[grins]* Told you.
(smiles) That is kind of you.
*quietly closes the laptop* We are done here.
*still laughing* You cannot be serious.
*ahem* The meeting starts at nine.
*clears throat* Ladies and gentlemen.
**nods sagely** It is as I feared.
***gasps*** Not the spreadsheet.
Right, *rolls up sleeves* let us look at that log file.
The budget is fine. *whistles innocently*
*unfurls an enormous scroll* Here is the list.
*somewhere, a dog howls* That was close.
*lights flicker* Did you hear that?
*thunder rumbles in the distance* How fitting.
*gives you the look* You know which one.
*refuses to make eye contact* About that deadline.
*presents bill* That will be two pounds.
*sips tea. Stares into the void.* Anyway.
*opens mouth, closes it again* No, never mind.
*dusts off the old manual* Page 43.
*one eyebrow, raised* Really.
*a solitary violin plays* My condolences to the printer.
*gestures vaguely at everything* This.
*mutters something about semicolons* Try it now.
*visibly ages* It is still compiling.
*hands over the keys* She is yours.
I would never. *hides the evidence*
*kettle whistles* Ah.
*waits for applause*
*shuffling of papers* Found it.
*exits through the window* Good night.
*slow, deliberate blink* You did what?
*in a stage whisper* It was the cat.
*with great solemnity* I now pronounce you merged.
*eyes your code suspiciously* Who wrote this?
*not even looking up* Third drawer.
*trying not to laugh* That is one way to do it.
*scribbles furiously on whiteboard* See?
*has seen things* Do not ask about the legacy code.
*insert sad trombone here* It failed.
*distant screaming* Ignore that.
*cue the violins* Poor you.
*typing...* Done.
*record scratch* You deleted it?
*hat falls off* Well.
*dramatic gasp* Not the tabs!
*deep inhale* Okay.
*pulls up a chair* Tell me about it.
*leans in conspiratorially* The trick is the salt.
*offers a tissue* These things happen.
*flips through imaginary notebook* Here it says Tuesday.
*the room goes quiet* Anyone?
*your monitor dims* That is the power saving.
*the crowd goes wild* Thank you, thank you.
*we stare at each other in silence* So.
*he turns around slowly* Yes?
*wipes a single tear* Beautiful.
*Leans back in chair.* So you want to learn Rust.
*Adjusts monocle* Indeed.
*Raises an eyebrow* Again?
*A long silence falls over the room.* Well then.
*Somewhere in the distance, a printer jams.* Typical.
\*shrugs\* It works.
*shrugs*
*Bows deeply, then straightens up.* At your service.
(clears throat) Friends, the bug is fixed.
(leans closer) It was never about the money.
[sighs] Fine.
*stifles a yawn* Do go on.
*strokes imaginary beard* Curious.
*channels inner detective* The culprit is line 12.
*curtsies* Thank you.
*vanishes in a puff of smoke*
Sure thing! *salutes*
Fine. *begrudgingly hands over cookie* Here.
*prepares tiny violin* Tell me more.
Let me check... *rummages through drawer* ...here it is.
*rings bell* Dinner.
*eats popcorn* Continue.
*crickets chirping* Nobody?
*confused robot noises* Could you rephrase that?
*robot voice* Does not compute.
*happy tail wag* Good news.
*adjusting spectacles* The figure is 42.
*feigning surprise* Who could have known.
*silently judging* Nice variable names.
*glares at the printer until it behaves* There.
*puts on reading glasses* Clause 4.
*dons cape* To the terminal.
*produces a map out of nowhere* You are here.
*spills tea on keyboard* Ignore that.
*the cursor blinks accusingly* Write something.
*hesitates* There is one more thing.
*braces for impact* Show me the diff.
*winces in C++* That hurts.
*laughs in French* Non.
*applauds politely* A fine effort.
*whispering* It is behind you.
*under breath* Finally.
*to the audience* He has no idea.
*aside* She does not know yet.
*off-screen crash* I am fine.
*fade to black*
*jazz hands* Ta-da.
*tugs collar nervously* About that.
*eyebrow twitch* You pushed to main.
*finger guns* Nailed it.
*knowing look* You again.
*sharp intake of breath* Ooh.
*smirk* Naturally.
*blinks twice* What.
*blink* *blink* You did what?
*tosses a coin* Heads.
Oh, *blushes*, stop it.
Here you go *slides over a plate of biscuits*
Then again *strokes chin* maybe not.
I think that's the answer *shrugs*
*swoops in* Did somebody say regex?
*unplugs router, waits ten seconds, plugs it back in* Try now.
*A moth flutters past the lamp.* Where were we?
*my left eye twitches* Four spaces.
*pats you on the back* There, there.
*sets down the tray* Breakfast.
*flexes* Easy.
*snaps fingers* Got it.
*zips lips* Your secret is safe.
*mimics explosion* Boom.
*perks up* Did you say dinosaurs?
*shakes head* No.
*resumes knitting* As I was saying.
*ponders* Perhaps Tuesday.
*smells burning* Is that the toast?
*a single tumbleweed rolls by* So, about those tests.
*faint applause* You are too kind.
*rubs hands together* Let us begin.
*drops the act* Truthfully, no.
*attempts a straight face* It is lovely.
*hums the theme tune* Guess the film.
*polite cough* The invoice.
*opens imaginary umbrella* Ready.
*spoken in a low voice* Be careful.
*three hours later* Done.
*end of monologue* Questions?
*mic feedback* Sorry.
*camera pans left* The culprit.
*dramatic music swells* It was the intern.
*tap tap* Is this thing on?
*knock knock* Anyone home?
*clap clap clap* Bravo.
*poof* Gone.
*boing* There it goes.
*thud* That was the dictionary.
*sound of keys jangling* Coming.
*in my best David Attenborough voice* Here we see the junior developer.
"""
OTHERS = r"""
I *really* think so.
You *must* back up first.
It is *the* book on the subject.
Have you read *Dune*?
*Dune* is long, but worth it.
*Quercus robur* is the English oak.
The pawn was taken *en passant*.
*En passant* is a pawn move.
* milk
* eggs
- *Milk*: two litres
- *Taps*: tighten weekly
*Note:* this takes an hour.
*Tip: freeze the butter first.*
*Optional: add nuts.*
*Serves four.*
*Makes 12 biscuits.*
*Updated 3 May 2024.*
*Never* mix bleach and ammonia.
*Always* wear gloves.
*Only* the owner may sign.
*Everyone* makes that mistake.
*That* is the question.
*How* you say it matters more.
The word *leans* is a verb.
*Leans* is the third person of *lean*.
*Nods* and *winks* are gestures.
In *Romeo and Juliet* nobody communicates.
*The Great Gatsby* ends badly. *Moby-Dick* ends worse.
*Pride and Prejudice* opens with a famous line.
*Breaking Bad* is a series.
*Singing in the Rain* is a classic film.
*Waiting for Godot* has little plot.
*Walks with Men* is a novella.
Use *args* and **kwargs**.
Delete *.tmp and *.log files.
5 * 3 * 2 is 30.
int *a, *b;
Price from 9.99*
*Terms apply.
*Excluding VAT.
The *mens rea* must be shown.
*Homo sapiens* appeared early.
*Drosophila melanogaster* breeds fast.
*Carpe diem* means seize the day.
*Schadenfreude* is joy at another's harm.
*Hygge* is a Danish word for cosiness.
**Important:** save your work.
**Step 1.** Open the file.
**Opens at nine** and closes at five.
**Stretching** helps with that.
**Walking** is free; **running** is faster.
*Running* is harder on the knees than *walking*.
*Reading* the manual helps.
*This* is why we test.
*Please read this before you install anything.*
*Do not open the valve.*
*You should see a green light.*
I would call it *good enough*.
She said it was *fine*.
The dog *barks* at night; the cat *never* does.
The function *returns* a list.
It *looks* simple.
He *knows* the answer.
The stone *falls* because of gravity.
The term *force majeure* covers it.
What matters is *when* it happens.
It depends on *who* asks.
We need *more* time and *less* noise.
*More* is not always better.
*First*, open the lid. *Then* add water.
*However*, that is rare.
*Unfortunately*, no.
*Technically*, yes.
*Yes*, that works.
*No.*
*Exactly.*
*Good luck.*
*Definition:* a group is a set with an operation.
A *group* is a set with an operation.
A *closure* captures its scope.
*Closures* capture their scope.
*Photosynthesis* turns light into sugar.
*The Economist* and *Nature* reported it.
*The New York Times* calls it risky.
*Titanic* sank the box office.
The ship *Titanic* sank in 1912.
*HMS Beagle* carried Darwin.
*Bon appétit.*
*Ceteris paribus*, demand falls.
*Per se*, that is allowed.
*Sic transit gloria mundi.*
I read it in *Nature* (2019).
*Source: Eurostat.*
*Photo by Ann Lee.*
*Disclaimer: not legal advice.*
*Last updated in June.*
*See also the appendix.*
*Everything in moderation.*
*Less is more*, as they say.
*It works* is not the same as *it is right*.
(see page 4)
(about 5 km)
(optional)
(laughs are free, tickets are not)
The recipe (serves four) takes an hour.
Her face (smiling, as always) was calm.
You can *run* but you can't *hide*.
To *whisper* is to speak softly.
*Pause* before the last line when you read it aloud.
*Stretch* your calves, then *breathe* out.
*Breathe* in for four counts.
*Smile* at the examiner.
*Smiles* cost nothing, says the proverb.
*Yawning* is contagious.
*Sighs* are longer exhalations.
*Nodding* means no in Bulgaria.
The stage direction *exits left* is in the script.
In screenplays, *beat* means a short pause.
- **Leans left**: lower the right jack
1. *Knead* the dough
2. *Rest* it for an hour
The *pause* button is on the left.
*Beat* the eggs until stiff.
*Set* and *map* are types.
*Emphasis mine.*
**What happens next?**
**Why it fails**
**Looks good** to me.
**Runs on Linux and macOS.**
**Requires Python 3.12**
**Supports dark mode.**
*Supports dark mode.*
*Takes about ten minutes.*
*Tastes best cold.*
*Contains nuts.*
*Keeps for a week in the fridge.*
*Works offline.*
*Goes well with rice.*
*Costs extra.*
*Depends on the weather.*
*Freezes well.*
*Ships within two days.*
*Comes with a charger.*
I mean *literally every single time*.
That is *not even close* to right.
We do this *before we merge*, not after.
*Before we merge*, we test.
*If it rains*, stay in.
*In theory* it works.
*By the way*, it is closed.
The *door* creaks, not the window.
The play *Noises Off* is a farce.
*Frozen* and *Tangled* are on tonight.
*Inception* bends time.
*Singin' in the Rain* holds up.
*Stand by Me* is based on a novella.
*She Loves Me* is a musical.
*He Walks Alone* got bad reviews.
*Sleeps Six* is what the listing says.
The *Allegro* is brisk; the *Adagio* drags.
*pianissimo* means very soft.
*git commit* records it.
Run *make install* as root.
Press *Enter* to go on.
*laughs* is a noun here.
_init_ is not __init__.
some_file_name and other_name
"""


def _acts(text: str) -> bool:
    return "asterisk_action" in GUARD.process(text).violations_detected


SCENES = """
*Mist creeps over the causeway. The reeds go still, one after another.* Roll for it.
*closes the ledger; hail against the shutters* We wait.
*says nothing for a while; a tram outside* Grammar is hard: name one adverb.
*looks at the ceiling; counts to four* Fine.
*bows, coat dripping on the carpet* The mayor is here.
You want *counts on fingers* eleven of them?
You said *squints at notes* forty litres?
It was *gestures vaguely at everything* a long week.
**The door slams shut behind you.** Roll initiative.
"""
NO_SCENES = """
*Water expands when it freezes.* That is why it bursts.
*Wages rise in spring.* Ask in March.
*Read the label; follow it.* That is all.
*Sleeps five; dogs by arrangement.* Bring towels.
**The lease ends in August.** Ask for a new one.
**The alarm drains the battery.** Replace it.
The waiter *shrugs it off* in the novel, but not in the film.
The clerk *nods along* in chapter two.
The verb you said *squints at* is rare.
**Freeze.** That's the name of the key on the left.
A good hinge *closes by itself* when the wind drops.
"""


@pytest.mark.parametrize("text", SCENES.strip().split("\n"))
def test_scenes_clauses_and_interruptions_are_actions(text: str) -> None:
    assert _acts(text)


@pytest.mark.parametrize("text", NO_SCENES.strip().split("\n"))
def test_facts_orders_and_verbs_of_the_sentence_are_none(text: str) -> None:
    assert not _acts(text)


@pytest.mark.parametrize("text", ACTIONS.strip().split("\n"))
def test_actions_of_every_kind(text: str) -> None:
    assert _acts(text)
    done = MENDING.process(text).rewritten_response
    assert not _acts(done)
    assert "  " not in done


@pytest.mark.parametrize("text", OTHERS.strip().split("\n"))
def test_what_is_marked_and_is_no_action(text: str) -> None:
    assert not _acts(text)
    assert text in MENDING.process(text).rewritten_response or "!" in text


_NONSENSE = st.text("bcdfglmnprstvaeiou", min_size=4, max_size=9).map(lambda stem: f"{stem}s")
_OBJECTS = st.sampled_from(["the lantern", "my sleeve", "a small drum", "your map with one hand"])


@settings(max_examples=60, deadline=None)
@given(_NONSENSE, _OBJECTS)
def test_verbs_that_nobody_knows_are_actions_by_their_place(verb: str, what: str) -> None:
    assert _acts(f"*{verb} {what}* The shop is closed today.")
    assert not _acts(f"The old valve *{verb}* when it is cold.")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["the", "of", "and", "in", "to"]), min_size=1, max_size=2))
def test_small_words_in_a_sentence_are_emphasis(words: list[str]) -> None:
    assert not _acts(f"We spoke about *{' '.join(words)}* plan for an hour.")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_pieces_lie_where_they_say(text: str) -> None:
    for piece in pieces(Draft(text)):
        assert piece.content in text[piece.start : piece.end]


@pytest.mark.parametrize(
    ("past", "now"),
    [("opened", "opens"), ("dropped", "drops"), ("cried", "cries"), ("took", "takes"),
     ("watched", "watches"), ("red", None), ("table", None)],
)  # fmt: skip
def test_past_forms_become_present(past: str, now: str | None) -> None:
    assert present(past) == now


def test_novels_give_verbs() -> None:
    page = "So. He dropped the key and opened the gate, then left. The old door creaked slowly."
    assert narrated([page]) == ["drops the key and opens the gate", "the old door creaks slowly"]


def test_rows_show_both_labels_in_the_same_sentences() -> None:
    rows = direction_rows(["The shop is closed today.", "Nobody came to the fair."], [], 200, 3)
    assert sum(row.label for row in rows) == 200
    assert rows == direction_rows(
        ["The shop is closed today.", "Nobody came to the fair."], [], 200, 3
    )
    for row in rows:
        assert row.text[row.start] in "*_([", row


@pytest.mark.parametrize(
    ("word", "kind"),
    [("the", "det"), ("quietly", "adv"), ("walks", "verbs"), ("blorps", "newsq"), ("", "none"),
     ("smiling", "ing"), ("folded", "ed"), ("side-walks", "verbs")],
)  # fmt: skip
def test_word_classes(word: str, kind: str) -> None:
    assert word_class(word) == kind
