"""Names of modalities, and the value domain of a modality."""

from __future__ import annotations

from collections.abc import Iterable

from medssl.types import UserError, ValueDomain

KNOWN = frozenset(
    (
        "CT MR PT NM US XA RF CR DX MG IO PX OP OPT OCT IVUS IVOCT ES XC GM SM BI BMD DG ECG EPS HC IR LS OAM OT TG VL "
        "AR BDUS CFM DMS DR FA CP CS EC LP MA MS OPM OPTENF OPTBSV PA POS ST VF DS CD RG RTIMAGE SEG"
    ).split()
)
_WORDS = {
    "CT": "cat computed_tomography computer_tomography cbct cect ldct hrct",
    "MR": "mri mrt nmr magnetic_resonance magnetic_resonance_imaging t1 t1w t2 t2w flair dwi",
    "PT": "pet positron positron_emission_tomography",
    "NM": "spect scintigraphy nuclear_medicine",
    "US": "ultrasound sonography echo echocardiography echography",
    "DX": "xr x_ray xray radiograph radiography cxr x_rays",
    "MG": "mammography mammogram mammo",
    "OP": "fundus ophthalmic_photography",
    "OPT": "oct optical_coherence_tomography",
    "ES": "endoscopy",
    "SM": "slide microscopy slide_microscopy histology histopathology pathology",
    "XC": "photo photograph photography dermoscopy",
    "XA": "angiography x_ray_angiography",
    "RF": "fluoroscopy",
    "OT": "other",
}  # fmt: skip
_BY_WORD = {word: term for term, words in _WORDS.items() for word in words.split()}
_DOMAINS: dict[str, ValueDomain] = {"CT": "hu", "MR": "mr"}
_OF_CHANNELS = ("CT", "MR", "PT", "US", "DX")  # "ES" is end-systole as often as endoscopy
_MR_CHANNELS = ("MR", "T1", "T2", "FLAIR", "PD", "DWI", "ADC", "FMRI", "CMR", "CINE", "LGE", "SWI")  # beginnings


def modality_of(text: str) -> str:
    """Converts the name of a modality to DICOM's term.

    Args:
        text: A DICOM term or a common name, in upper or lower case ("MRI", "ct ", "X-ray"); "" stays "".

    Raises:
        UserError: The name is not known; lists known ones.
    """
    word = text.strip().upper()
    term = normalized(word)
    if term and term not in KNOWN:
        usual = "CT, MR, PT, NM, US, DX, CR, MG, XA, RF, OP, OPT, ES, XC, SM, OT"
        message, expected = "modality not known", f"one of {usual}, or another of DICOM's modalities"
        raise UserError(message, key="files.modality", got=text, expected=expected)
    return term


def normalized(text: str) -> str:
    """DICOM's term of a modality; an unknown name is returned in upper case and without padding."""
    word = text.strip().strip("\0").upper()
    return word if word in KNOWN else _BY_WORD.get(word.lower().replace("-", "_").replace(" ", "_"), word)


def domain_of(modality: str) -> ValueDomain:
    """Value domain of a modality (DICOM's term): Hounsfield units, MR, or gray values."""
    return _DOMAINS.get(modality, "gray")


def of_channels(names: Iterable[str]) -> str:
    """The common modality of channel names ("T1w" and "FLAIR": MR); "" if they differ."""
    terms = {_of_channel(name.strip().upper()) for name in names}
    return terms.pop() if len(terms) == 1 else ""


def _of_channel(word: str) -> str:
    if word.startswith("CT_"):
        return "CT"
    term = "MR" if word.startswith(_MR_CHANNELS) else normalized(word)
    return term if term in _OF_CHANNELS else ""
