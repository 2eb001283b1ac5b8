use std::collections::BTreeMap;

use lathe_stats::{Bootstrap, Interval, SMALLEST_BOOTSTRAP, Unit, ratio_of_sums};
use serde::{Deserialize, Serialize};

use crate::{Against, Error, Histogram, ModelPass, Pass, Role};

/// A figure with its interval, where there is enough text for one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub point: f64,
    /// Absent where the text is a single piece.
    pub interval: Option<Interval>,
}

impl Figure {
    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { point: f(self.point), interval: self.interval.map(|i| i.map(f)) }
    }
}

/// What intervals resample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Units {
    Documents,
    /// Segments, where there are too few documents. Neighbours depend on each other a little, so
    /// the intervals are somewhat too short.
    Segments,
}

/// All figures of one pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassFigures {
    /// The convention: print it beside every figure.
    pub label: String,
    pub units: Units,
    /// The base first.
    pub models: Vec<ModelFigures>,
    pub floor: Option<NoiseFloor>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFigures {
    pub name: String,
    pub role: Role,
    /// Tokens that counted.
    pub tokens: u64,
    pub perplexity: Figure,
    /// Bits per byte of text, which models with different tokenizers can be compared by; where
    /// all of the text counted.
    pub bits_per_byte: Option<Figure>,
    /// `None` for the base.
    pub versus: Option<Versus>,
}

/// A model against the base: paired, on the same tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Versus {
    /// Perplexity over the base's: 1.02 is an increase of 2 %.
    pub perplexity_ratio: Figure,
    /// Mean KL(base‖model), nats per token.
    pub kl: Figure,
    pub kl_median: f64,
    pub kl_p99: Figure,
    pub kl_max: f64,
    /// Share of tokens at which both have the same likeliest next token.
    pub same_top: Figure,
    /// The rest of them.
    pub flips: Figure,
    /// Mean change of the probability of the token that came; negative is worse.
    pub delta_p: Figure,
    /// Root of its mean square.
    pub delta_p_rms: Figure,
    /// Mean change of the probability of the base's likeliest token.
    pub delta_top: Figure,
    /// Mean KL above the noise floor's, paired; with a floor only.
    pub kl_above_floor: Option<Figure>,
}

/// What rounding alone does to the base. Differences of this size mean nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoiseFloor {
    /// Such as `base rounded to bf16`.
    pub name: String,
    pub kl: Figure,
    pub same_top: Figure,
    pub perplexity_ratio: Figure,
}

impl NoiseFloor {
    /// One line to print beside the figures.
    pub fn label(&self) -> String {
        format!(
            "noise floor ({}): KL {:.2e}, same top token {:.2} %, perplexity × {:.5}",
            self.name,
            self.kl.point,
            100.0 * self.same_top.point,
            self.perplexity_ratio.point,
        )
    }
}

impl PassFigures {
    /// Computes every figure from the sums.
    ///
    /// Intervals are by the bootstrap over documents, or over segments where fewer than
    /// [`SMALLEST_BOOTSTRAP`] documents have text. The same seed resamples the same documents for
    /// every figure.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for sums that do not belong together; [`Error::Stats`].
    pub fn new(pass: &Pass, bootstrap: &Bootstrap) -> Result<Self, Error> {
        pass.check()?;
        let maker = Maker::new(pass, bootstrap)?;
        let floor = pass.models.iter().find(|m| m.role == Role::Floor);
        let models = pass.models.iter().map(|m| maker.model(m, floor));
        let models = models.collect::<Result<Vec<_>, _>>()?;
        let floor = models.iter().find(|m| m.role == Role::Floor).and_then(|m| {
            let v = m.versus.as_ref()?;
            Some(NoiseFloor {
                name: m.name.clone(),
                kl: v.kl,
                same_top: v.same_top,
                perplexity_ratio: v.perplexity_ratio,
            })
        });
        Ok(Self { label: pass.label.clone(), units: maker.units, models, floor })
    }

    /// The figures of the model with this name.
    pub fn model(&self, name: &str) -> Option<&ModelFigures> {
        self.models.iter().find(|m| m.name == name)
    }
}

/// Groups the sums of segments into units and computes figures over them.
struct Maker<'a> {
    pass: &'a Pass,
    bootstrap: &'a Bootstrap,
    units: Units,
    /// The unit of each segment.
    unit_of: Vec<usize>,
    tokens: Vec<f64>,
    /// Of each unit, the document; read for histograms and bytes when units are documents.
    documents: Vec<usize>,
}

impl<'a> Maker<'a> {
    fn new(pass: &'a Pass, bootstrap: &'a Bootstrap) -> Result<Self, Error> {
        let mut places = BTreeMap::new();
        for segment in &pass.segments {
            let next = places.len();
            places.entry(segment.document).or_insert(next);
        }
        let units =
            if places.len() < SMALLEST_BOOTSTRAP { Units::Segments } else { Units::Documents };
        let unit_of: Vec<usize> = match units {
            Units::Documents => pass.segments.iter().map(|s| places[&s.document]).collect(),
            Units::Segments => (0..pass.segments.len()).collect(),
        };
        let mut documents = vec![0; unit_of.iter().max().map_or(0, |m| m + 1)];
        for (&unit, segment) in unit_of.iter().zip(&pass.segments) {
            documents[unit] = segment.document as usize;
        }
        let mut maker = Self { pass, bootstrap, units, unit_of, tokens: Vec::new(), documents };
        maker.tokens = maker.sum(|i| f64::from(pass.segments[i].tokens));
        if maker.tokens.iter().sum::<f64>() == 0.0 {
            return Err(Error::Mismatch { why: "no token counts".into() });
        }
        Ok(maker)
    }

    fn model(&self, model: &ModelPass, floor: Option<&ModelPass>) -> Result<ModelFigures, Error> {
        let nll = self.sum(|i| model.nll[i]);
        Ok(ModelFigures {
            name: model.name.clone(),
            role: model.role,
            tokens: self.tokens.iter().sum::<f64>() as u64,
            perplexity: self.figure(&nll, &self.tokens)?.map(f64::exp),
            bits_per_byte: self.bits_per_byte(&nll)?,
            versus: match model.role {
                Role::Base => None,
                _ => Some(self.versus(model, floor)?),
            },
        })
    }

    fn versus(&self, model: &ModelPass, floor: Option<&ModelPass>) -> Result<Versus, Error> {
        let base = &self.pass.models[0];
        let mean = |of: &dyn Fn(&Against) -> f64| {
            self.figure(&self.sum(|i| of(&model.against[i])), &self.tokens)
        };
        let share = |f: Figure| f.map(|x| x.clamp(0.0, 1.0));
        let positive = |f: Figure| f.map(|x| x.max(0.0));
        let same_top = share(mean(&|a| f64::from(a.same_top))?);
        let mut histogram = Histogram::default();
        model.kl_histograms.iter().for_each(|h| histogram.merge(h));
        let above = self.sum(|i| match floor {
            Some(floor) => model.against[i].kl - floor.against[i].kl,
            None => 0.0,
        });
        Ok(Versus {
            perplexity_ratio: self
                .figure(&self.sum(|i| model.nll[i] - base.nll[i]), &self.tokens)?
                .map(f64::exp),
            kl: positive(mean(&|a| a.kl)?),
            kl_median: histogram.quantile(0.5).unwrap_or(0.0),
            kl_p99: self.quantile(model, &histogram, 0.99)?,
            kl_max: model.against.iter().fold(0.0, |m, a| a.kl_max.max(m)),
            same_top,
            flips: same_top.map(|x| 1.0 - x),
            delta_p: mean(&|a| a.delta_p)?,
            delta_p_rms: positive(mean(&|a| a.delta_p_squares)?).map(f64::sqrt),
            delta_top: mean(&|a| a.delta_top)?,
            kl_above_floor: match (model.role, floor) {
                (Role::Candidate, Some(_)) => Some(self.figure(&above, &self.tokens)?),
                _ => None,
            },
        })
    }

    /// Sums a value of each segment by unit.
    fn sum(&self, value: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut sums = vec![0.0; self.documents.len()];
        for (i, &unit) in self.unit_of.iter().enumerate() {
            sums[unit] += value(i);
        }
        sums
    }

    fn figure(&self, sums: &[f64], counts: &[f64]) -> Result<Figure, Error> {
        let units: Vec<Unit> =
            sums.iter().zip(counts).map(|(&sum, &count)| Unit { sum, count }).collect();
        if units.len() < 2 {
            return Ok(Figure {
                point: sums.iter().sum::<f64>() / counts.iter().sum::<f64>(),
                interval: None,
            });
        }
        let interval = ratio_of_sums(&units, self.bootstrap)?;
        Ok(Figure { point: interval.point, interval: Some(interval) })
    }

    fn bits_per_byte(&self, nll: &[f64]) -> Result<Option<Figure>, Error> {
        if self.pass.document_bytes.is_empty() {
            return Ok(None);
        }
        let bits = |f: Figure| f.map(|x| x / std::f64::consts::LN_2);
        let bytes_of = |document: usize| {
            let bytes = self.pass.document_bytes.get(document);
            bytes.map(|&b| b as f64).ok_or(Error::Mismatch { why: "a document has no size".into() })
        };
        if self.units == Units::Documents {
            let bytes =
                self.documents.iter().map(|&d| bytes_of(d)).collect::<Result<Vec<_>, _>>()?;
            return Ok(Some(bits(self.figure(nll, &bytes)?)));
        }
        // Few documents in several segments each: the sizes of segments are not known.
        let bytes: u64 = self.pass.document_bytes.iter().sum();
        let point = nll.iter().sum::<f64>() / bytes.max(1) as f64;
        Ok(Some(bits(Figure { point, interval: None })))
    }

    /// A quantile of single tokens' KL, with the bootstrap over documents where they are the units.
    fn quantile(&self, model: &ModelPass, all: &Histogram, p: f64) -> Result<Figure, Error> {
        let point = all.quantile(p).unwrap_or(0.0);
        let histograms = self.documents.iter().map(|&d| model.kl_histograms.get(d));
        let histograms: Option<Vec<&Histogram>> = histograms.collect();
        let (Units::Documents, Some(histograms)) = (self.units, histograms) else {
            return Ok(Figure { point, interval: None });
        };
        let percentile = Bootstrap { kind: lathe_stats::Kind::Percentile, ..*self.bootstrap };
        let interval = percentile.over(histograms.len(), |units| {
            let mut drawn = Histogram::default();
            units.iter().for_each(|&u| drawn.merge(histograms[u]));
            drawn.quantile(p).unwrap_or(f64::NAN)
        })?;
        Ok(Figure { point, interval: Some(interval) })
    }
}
