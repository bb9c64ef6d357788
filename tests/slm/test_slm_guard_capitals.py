"""Capitals: what shouts and what is a name, a level, a label or an acronym; chess, coffee, tone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_companion.errors import ConfigError
from mlx_companion.slm.guard import PersonalityGuard
from mlx_companion.slm.packs import load_pack, packaged
from recipes import train_guard

GUARD = PersonalityGuard(level="monitor")

SHOUTS = r"""
That is AMAZING news.
You are THE BEST.
OMG that worked.
LOL, good one.
WOOHOO, it compiles.
YESSS. Finally.
I am SO SO happy for you.
This is HUGE for the team.
WOW, look at that.
I LOVE how you did this.
It is EVERYTHING I wanted.
Guess WHO passed the exam.
STOP, that is too funny.
You met DOLLY PARTON at a petrol station?
LMAO what a day.
I CAN'T EVEN. It is too good.
That cake was DIVINE.
And it WORKS.
We ship TODAY.
I told you it would WORK.
He said YES.
HECK YES it is.
That is the CUTEST dog.
SQUEEE, puppies.
It's HAPPENING.
GOOOOOAL.
OH MY GOD.
OH MY GOSH yes.
BEST day ever.
This is GOLD.
You ABSOLUTELY nailed it.
I am DYING, that is hilarious.
You guys ROCK.
ALL the snacks.
It was SUCH a good film.
what a DAY
NO WAY, you finished it?
FINALLY some rain.
This recipe is a GAME CHANGER.
CONGRATS on the new flat.
Hands down the BEST soup in town.
BOOM, done.
And the crowd went WILD.
OMG OMG OMG it's here.
IT IS ALIVE.
WHAT a catch.
That's INSANE, how did you do it?
Three weeks EARLY.
Wait, you built that YOURSELF?
I need to know EVERYTHING.
Tell me MORE.
Your cat has its OWN room?
I'm LIVING for this spreadsheet.
It's GIVING main character.
PARTY TIME.
LET'S GOOO
HOORAY for weekends.
This is my FAVOURITE one.
The view is to DIE for.
YAAAY, we did it.
UNREAL. Just unreal.
ICONIC behaviour.
QUEEN.
PERIOD.
ROFL.
BFF goals.
FTW.
It was LEGENDARY, truly.
Tiny, but MIGHTY.
Oh, this is going to be FUN.
DO IT.
It's BACK. The bug you killed is BACK.
That plot twist? CHEF'S KISS.
TREMENDOUS work on the roof.
SPLENDID.
Best. Trip. EVER.
You, my friend, are a LEGEND.
"""
NAMES = r"""
NASA and ESA publish raw images in the MAST archive.
ERROR means the job stopped, WARN means it went on with a guess, and INFO is chatter.
CAUTION: HOT SURFACE is enough for the label.
The JWST and the ALMA array look at the same cloud.
Set the level to WARN in production.
The levels are DEBUG, INFO, WARN and ERROR.
The GIF is 3 MB; use WEBP or AVIF.
It supports HDMI, USB and DVI.
The ECB and the IMF disagree.
UNESCO and UNICEF are UN bodies.
The LASER was named in 1957; so was the MASER.
It uses RAID 5 and ECC RAM.
Read the README and the LICENSE first.
Edit the Makefile and the TODO list.
The enum has RED, GREEN and BLUE.
The states are IDLE, READY and DONE.
The form asks for your SURNAME and DATE OF BIRTH.
Chapter XIV covers World War II.
LLC and GmbH are company forms.
The column is called STATUS; the values are OPEN and CLOSED.
Press SHIFT and then DELETE.
The sign says EXIT in green letters.
The button says BUY NOW.
Turn the knob to HIGH, then to LOW.
The dial goes from OFF to MAX.
The engine light reads CHECK ENGINE.
The label reads FRAGILE.
TLDR: it works.
TL;DR: it works.
FAQ, RSVP and ASAP are abbreviations.
The ZIP code is on the back.
The file is named FINAL_v2.
Ticker AAPL fell, while GOOG and TSLA rose.
Write SELECT name FROM users WHERE age IS NOT NULL.
Use GET for reading and POST for writing.
HTTP PUT replaces; PATCH changes a part.
The CAPM and the WACC are in the appendix.
It is 5 KM to the coast and 12 MI to the town.
The DJ played until the PA failed.
PTSD and ADHD are covered; so is OCD.
Stick to the KISS and DRY principles.
SMART goals are specific.
The SWOT analysis is due.
Use the STAR method in interviews.
FOMO and JOMO are new words.
The BBC and ITV both show it.
LOL stands for laughing out loud.
The acronym YOLO was everywhere in 2012.
WARNING: do not mix these.
NOTE: back up first.
STEP 1: open the lid.
PART TWO is better than PART ONE.
Do NOT mix bleach and ammonia.
You must NEVER leave it unattended; the gas can explode.
The AND gate and the OR gate differ.
In Boolean logic, NOT binds first.
IKEA, LEGO and SAAB are Swedish or Danish.
The US, the UK and the EU signed.
He has an MBA and a PhD.
My CV is two pages; HR has it.
The GPU has 8 GB of VRAM.
LED bulbs save power; CFL bulbs less so.
The PIN is on the SIM card.
BMW and FIAT share a platform.
MIT and UCLA offer it.
The SAT is in May; the GRE in June.
NBA and NFL games are on Sunday.
The DVD has a PAL version.
Act III, Scene II.
THE END
The WHO said so in 2020.
Our IT team will call you.
CEO and CFO are the same person there.
The variable is PATH; export it.
Set DEBUG to true.
Type EXIT to leave.
The keyword is FINAL in Java.
The CSS property takes AUTO or NONE.
Constants such as MAX and MIN are in caps.
BASIC and COBOL are old.
FORTRAN, LISP and ALGOL came first.
The EPA, the FDA and OSHA publish rules.
OPEC meets in Vienna.
The T&C say: THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND.
IBAN and SWIFT codes are on the invoice.
CLIP and BERT are models; so is T5.
The RGB value is #FF0000.
The GOAT debate, short for greatest of all time, is old.
Gate B: BOARDING.
DIY is cheaper.
The NYT and WSJ covered it.
Mix AM and FM radio.
It opens at 9 AM and closes at 5 PM.
The note in the margin said SEE OVER.
"""


def _found(text: str) -> list[str]:
    return GUARD.process(text).violations_detected


ANNOUNCED = """
BEHOLD: a cupboard without moths.
PLOT TWIST: the cheaper tent is dry.
GUESS WHAT: it compiles.
HALLELUJAH, the boiler works.
EUREKA. The leak is under the sink.
He BIT the postman.
She SAT down on my hat.
There were DUCKLINGS under the shed.
You turned RIGHT and there it was!
That is so RIGHT.
My face says WOW and I mean it.
- Result: AMAZING
I wrote it all in capitals because it is HUGE.
"""
WRITTEN_THERE = """
The label says SHAKE WELL and the lid says DO NOT REFRIGERATE.
The recipe says FOLD GENTLY, so fold.
Page two says USE COLD WATER in bold.
Turn the dial LEFT to 12, then RIGHT past zero.
Twist it once LEFT until it clicks, then RIGHT again.
SMEG, MINI and SEAT write their names in capitals.
- Attack: BITE (2d6)
VERDICT: buy the second one.
BREAKING CHANGE: the flag is gone.
You need a PIN to open it.
"""


@pytest.mark.parametrize("text", ANNOUNCED.strip().split("\n"))
def test_what_is_announced_or_stressed_shouts(text: str) -> None:
    assert "caps_enthusiasm" in _found(text)


@pytest.mark.parametrize("text", WRITTEN_THERE.strip().split("\n"))
def test_what_things_say_is_no_shout(text: str) -> None:
    assert "caps_enthusiasm" not in _found(text)


@pytest.mark.parametrize("text", SHOUTS.strip().split("\n"))
def test_shouts(text: str) -> None:
    assert "caps_enthusiasm" in _found(text)


@pytest.mark.parametrize("text", NAMES.strip().split("\n"))
def test_names_in_capitals(text: str) -> None:
    assert "caps_enthusiasm" not in _found(text)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("coffee_reference", "A galão on the terrace."),
        ("coffee_reference", "Two flat whites and a decaf."),
        ("exclamation_overuse", "Really?! Yes!"),
        ("exclamation_overuse", "¡Bravo! Done!"),
        ("exclamation_overuse", "\u597d\uff01\u5f88\u597d\uff01"),
        ("exclamation_overuse", "Done \u203c"),
        ("tone_cheerleader", "You have the most beautiful soul of anyone I've ever met!"),
    ],
)
def test_further_violations(rule: str, text: str) -> None:
    assert rule in _found(text)


def test_a_name_counts_in_any_case_unless_it_is_a_word() -> None:
    for name, text, found in (
        ("Sam", "SAM, sit. Well, sam, stay.", ["name_overuse"]),
        ("Rose", "The price rose. A rose is red. Hi Rose.", []),
    ):
        result = GUARD.process({"text": text, "user_name": name})
        assert result.violations_detected == found


@pytest.mark.parametrize(
    ("name", "text", "overused"),
    [
        ("April", "April, sit. The rent, April, is due.", True),
        ("April", "The fee falls due on 9 April, April.", False),
        ("June", "In June the fares drop, June.", False),
        ("May", "The May payroll runs on 28 May, May.", False),
        ("Ivy", "Water the ivy twice a week, Ivy.", False),
        ("Ivy", "IVY, stop. Breathe, Ivy.", True),
        ("Robin", "The robin is back, Robin.", False),
        ("Rose", "Well done, Rose. Now rest, Rose.", True),
        ("Florence", "Trains to Florence leave at nine, Florence.", False),
        ("Florence", "Florence, sit. Thank you, Florence.", True),
    ],
)
def test_a_name_is_not_the_month_the_plant_or_the_town(
    name: str, text: str, overused: bool
) -> None:
    found = GUARD.process({"text": text, "user_name": name}).violations_detected
    assert ("name_overuse" in found) is overused


@pytest.mark.parametrize(
    "text",
    [
        "In chess, Qxf7!! is brilliant and Qxf7?! is dubious. Nice!",
        "The Espresso test hangs because an animation runs.",
        "Your sensor is not accurate below 10.",
        "Let's try box breathing.",
        "I'd love to help with that.",
        "Prices include VAT (*with a paying adult).",
    ],
)
def test_nothing_is_found(text: str) -> None:
    assert _found(text) == []


def test_the_recipe_makes_a_pack_that_works(tmp_path: Path) -> None:
    train_guard.main(["--smoke", "--out", str(tmp_path)])
    pack = load_pack(tmp_path / "pack", "personality_guard")
    assert pack.rules == load_pack(packaged("personality_guard")).rules
    assert pack.metrics["direction_recall"] > 0.5
    guard = PersonalityGuard(pack=tmp_path / "pack", level="monitor")
    assert "asterisk_action" in guard.process("*grins* Sure.").violations_detected


def test_the_recipe_wants_data() -> None:
    with pytest.raises((ConfigError, SystemExit)):
        train_guard.main([])


@pytest.mark.parametrize(
    ("said", "mended"),
    [
        ("*slowly sets the lantern down* WOW, that is huge.", "Wow, that is huge."),
        ("Fine. *opens the door slowly* COME in now.", "Fine. Come in now."),
        ("I think *this one* is SO good.", "I think *this one* is so good."),
        ("*Really* GOOD idea, that.", "*Really* good idea, that."),
    ],
)
def test_what_follows_a_removed_direction_opens_its_sentence(said: str, mended: str) -> None:
    assert PersonalityGuard().process(said).rewritten_response == mended


@pytest.mark.parametrize(
    "said",
    [
        "Hold POWER and the volume key until the logo appears.",
        "Press and hold START for three seconds.",
        "There are two Ts in BUTTER and two more in BATTER.",
        "Eight letters, 'very small': it might be TINIEST or a name.",
        "The vowels in EDUCATION are all five of them.",
    ],
)
def test_a_key_that_is_held_and_a_word_that_is_spelt_are_no_shouts(said: str) -> None:
    assert "caps_enthusiasm" not in PersonalityGuard().process(said).violations_detected


@pytest.mark.parametrize(
    "said",
    [
        "Press HARD on the lid, it sticks.",
        "Your letters to the council are SO good.",
        "The syllables fit and the rhyme is PERFECT.",
        "I read all nine letters and I LOVE them.",
    ],
)
def test_excitement_beside_keys_and_letters_is_a_shout(said: str) -> None:
    assert "caps_enthusiasm" in PersonalityGuard().process(said).violations_detected
