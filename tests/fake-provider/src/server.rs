//! The HTTP side of the cloud: routes, pages, errors in the style of the cloud,
//! and the cutting of connections.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use petaflop_arbiter::money::UsdPerHour;
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::fault::{Fault, Kind};
use crate::inner::Inner;
use crate::manners::Style;
use crate::wire::{Create, Page, Problem, State as Life, View};

/// A page that is answered 500.
const BROKEN_PAGE: &str = "broken";
/// A page that points to itself.
const SAME_PAGE: &str = "same";

/// The mark of an answer that is not sent: the connection is cut instead.
#[derive(Clone, Copy)]
struct Cut;

/// Ends a connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut on purpose")]
struct CutOnPurpose;

/// Serves until the runtime ends.
pub(crate) async fn serve(listener: TcpListener, cloud: Arc<Inner>) {
    let routes = Router::new()
        .route("/v1/offers", get(quote))
        .route("/v1/machines", get(list).post(create))
        .route("/v1/machines/{id}", get(one).delete(terminate))
        .route("/v1/machines/{id}/leftovers", delete(clean))
        .with_state(cloud);
    while let Ok((stream, _)) = listener.accept().await {
        let routes = TowerToHyperService::new(routes.clone());
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let answer = routes.call(request.map(Body::new));
            async move {
                match answer.await {
                    Ok(answer) if answer.extensions().get::<Cut>().is_some() => Err(CutOnPurpose),
                    Ok(answer) => Ok(answer),
                    Err(never) => match never {},
                }
            }
        });
        tokio::spawn(async move {
            // What ends early was cut by us on purpose, or by the client.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// One call: noted when it comes, refused or done, answered or not.
struct Turn {
    cloud: Arc<Inner>,
    sequence: u64,
    faults: Vec<Fault>,
}

impl Turn {
    fn of(cloud: Arc<Inner>, kind: Kind, subject: &str) -> Self {
        let (sequence, faults) = cloud.called(kind, subject);
        Self { cloud, sequence, faults }
    }

    fn shows(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// What is answered before anything is done, if so.
    fn refusal(&self) -> Option<Response> {
        let style = self.cloud.manners.style;
        self.faults.iter().find_map(|fault| refusal(style, *fault))
    }

    /// Sends the answer, late or not at all where that was asked for.
    async fn answer(self, answer: Response) -> Response {
        for fault in &self.faults {
            match fault {
                Fault::SlowAnswer(late) => self.cloud.clock.sleep(*late).await,
                Fault::LostAnswer | Fault::LostRequest => return cut(),
                _ => {}
            }
        }
        self.cloud.answered(self.sequence, answer.status().as_u16());
        answer
    }
}

fn cut() -> Response {
    let mut answer = StatusCode::OK.into_response();
    answer.extensions_mut().insert(Cut);
    answer
}

fn problem(status: u16, code: &str, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = Problem { code: code.to_owned(), message: message.to_owned() };
    (status, Json(body)).into_response()
}

/// How each style says no. AWS says no capacity with 500 and a code, RunPod with 400 and words
/// that differ from those of a broken rule.
fn refusal(style: Style, fault: Fault) -> Option<Response> {
    use Style::{Aws, RunPod};
    Some(match (fault, style) {
        (Fault::LostRequest, _) => cut(),
        (Fault::ServerError, _) => problem(
            500,
            "InternalError",
            "Something went wrong. Please try again later or contact support.",
        ),
        (Fault::NoCapacity, Aws) => problem(
            500,
            "InsufficientInstanceCapacity",
            "We currently do not have sufficient capacity in the Availability Zone you requested.",
        ),
        (Fault::NoCapacity, RunPod) => problem(
            400,
            "",
            "There are no longer any instances available with the requested specifications. Please refresh and try again.",
        ),
        (Fault::RuleBroken, Aws) => problem(
            400,
            "InvalidParameterValue",
            "Value (x) for parameter instanceType is invalid.",
        ),
        (Fault::RuleBroken, RunPod) => problem(400, "", "disk must be at least 1"),
        (Fault::Quota, Aws) => {
            problem(400, "MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
        }
        (Fault::Quota, RunPod) => problem(403, "", "Your account may not use this pool."),
        (Fault::BalanceTooLow, _) => {
            problem(402, "", "Your balance is too low to rent this machine.")
        }
        (Fault::Unauthorized, _) => problem(401, "AuthFailure", "Unauthorized"),
        (Fault::Retired, _) => problem(410, "", "This interface is no more; use the next one."),
        (Fault::TerminateForbidden, _) => {
            problem(403, "UnauthorizedOperation", "You are not authorized to end this machine.")
        }
        (Fault::TerminateNotFound, _) => not_found(),
        (Fault::RateLimited(seconds), _) => {
            let mut answer = problem(429, "RequestLimitExceeded", "Too many requests");
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            answer
        }
        _ => return None,
    })
}

fn not_found() -> Response {
    problem(404, "InvalidInstanceID.NotFound", "There is no such machine.")
}

async fn quote(State(cloud): State<Arc<Inner>>) -> Response {
    let turn = Turn::of(cloud, Kind::Quote, "");
    let answer = match turn.refusal() {
        Some(refusal) => refusal,
        None => Json(turn.cloud.offers()).into_response(),
    };
    turn.answer(answer).await
}

async fn create(State(cloud): State<Arc<Inner>>, Json(request): Json<Create>) -> Response {
    let turn = Turn::of(cloud, Kind::Create, &request.identity);
    let answer = match turn.refusal() {
        Some(refusal) => refusal,
        None => bought(&turn, request),
    };
    turn.answer(answer).await
}

fn bought(turn: &Turn, request: Create) -> Response {
    let Turn { cloud, faults, .. } = turn;
    let style = cloud.manners.style;
    if cloud.manners.idempotent
        && let Some((id, same)) = cloud.by_token(&request)
    {
        return match same {
            true => made(cloud, &id),
            false => problem(
                400,
                "IdempotentParameterMismatch",
                "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
            ),
        };
    }
    let Some(price) = cloud.price_now(&request.offer, faults) else {
        return refusal(style, Fault::NoCapacity).unwrap_or_else(not_found);
    };
    // AWS keeps to the bid. RunPod takes what it costs, and says so in its answer.
    if style == Style::Aws && price > request.bid {
        let words = format!("Your Spot request price of {} is lower than {price}.", request.bid);
        return problem(400, "SpotMaxPriceTooLow", &words);
    }
    let id = cloud.make(request, price, faults);
    match turn.shows(Fault::CreatedBut500) {
        true => problem(
            500,
            "InternalError",
            "Something went wrong. Please try again later or contact support.",
        ),
        false => made(cloud, &id),
    }
}

fn made(cloud: &Arc<Inner>, id: &str) -> Response {
    let style = cloud.manners.style;
    match cloud.all().machine(id) {
        Some(machine) => (StatusCode::CREATED, Json(machine.view(style))).into_response(),
        None => not_found(),
    }
}

#[derive(Deserialize)]
struct From {
    cursor: Option<String>,
}

async fn list(State(cloud): State<Arc<Inner>>, Query(from): Query<From>) -> Response {
    let turn = Turn::of(cloud, Kind::List, from.cursor.as_deref().unwrap_or_default());
    let answer = match turn.refusal() {
        Some(refusal) => refusal,
        None => page(&turn, from.cursor.as_deref()),
    };
    turn.answer(answer).await
}

fn page(turn: &Turn, cursor: Option<&str>) -> Response {
    let Turn { cloud, .. } = turn;
    let machines = if turn.shows(Fault::StaleListing) {
        cloud.all().stale.clone()
    } else {
        let now = cloud.now();
        let mut views = cloud.views(&cloud.all(), now);
        views.retain(|view| !too_young(turn, view));
        views.into_iter().map(|view| told(turn, view)).collect()
    };
    let total = machines.len();
    let begin = match cursor {
        Some(BROKEN_PAGE) => return problem(500, "InternalError", "The list broke off."),
        Some(SAME_PAGE) => total,
        Some(number) => match number.parse::<usize>() {
            Ok(number) => number.min(total),
            Err(_) => return problem(400, "InvalidNextToken", "There is no such page."),
        },
        None => 0,
    };
    let end = (begin + cloud.manners.page).min(total);
    let mut page = Page {
        machines: machines[begin..end].to_vec(),
        cursor: (end < total).then(|| end.to_string()),
        total,
    };
    if cursor == Some(SAME_PAGE) {
        page.cursor = Some(SAME_PAGE.to_owned());
    } else if turn.shows(Fault::RepeatedCursor) {
        page.machines.pop();
        page.cursor = Some(SAME_PAGE.to_owned());
    } else if turn.shows(Fault::ErrorMidList) {
        page.machines.pop();
        page.cursor = Some(BROKEN_PAGE.to_owned());
    } else if turn.shows(Fault::PartialPage) {
        page.machines.pop();
        page.cursor = None;
        page.total = total.max(1);
    }
    Json(page).into_response()
}

fn too_young(turn: &Turn, view: &View) -> bool {
    let now = turn.cloud.now();
    turn.faults.iter().any(|fault| match fault {
        Fault::ListingLag(lag) => now.duration_since(view.created).unsigned_abs() < *lag,
        _ => false,
    })
}

async fn one(State(cloud): State<Arc<Inner>>, Path(id): Path<String>) -> Response {
    let turn = Turn::of(cloud, Kind::Get, &id);
    let answer = match turn.refusal() {
        Some(refusal) => refusal,
        None => {
            let now = turn.cloud.now();
            let views = turn.cloud.views(&turn.cloud.all(), now);
            let seen = views.into_iter().find(|view| view.id == id && !too_young(&turn, view));
            seen.map_or_else(not_found, |view| Json(told(&turn, view)).into_response())
        }
    };
    turn.answer(answer).await
}

async fn terminate(State(cloud): State<Arc<Inner>>, Path(id): Path<String>) -> Response {
    let turn = Turn::of(cloud, Kind::Terminate, &id);
    let answer = match turn.refusal() {
        Some(refusal) => refusal,
        None => {
            let state = turn.cloud.all().machine(&id).map(|machine| machine.state);
            match (state, turn.cloud.manners.style) {
                // One keeps ended machines in mind, the other does not.
                (None, _) | (Some(Life::Terminated), Style::RunPod) => not_found(),
                (Some(_), _) => {
                    if !turn.shows(Fault::TerminateIgnored) {
                        turn.cloud.stop(&id);
                    }
                    StatusCode::NO_CONTENT.into_response()
                }
            }
        }
    };
    turn.answer(answer).await
}

async fn clean(State(cloud): State<Arc<Inner>>, Path(id): Path<String>) -> Response {
    let turn = Turn::of(cloud, Kind::Terminate, &id);
    let answer = match turn.refusal() {
        Some(refusal) => refusal,
        None => {
            turn.cloud.clean(&id);
            StatusCode::NO_CONTENT.into_response()
        }
    };
    turn.answer(answer).await
}

/// A machine as it is told of in this call.
fn told(turn: &Turn, view: View) -> View {
    let percent = turn.faults.iter().find_map(|fault| match fault {
        Fault::PriceTold(percent) => Some(*percent),
        _ => None,
    });
    View { price: dearer(view.price, percent.unwrap_or(0)), ..view }
}

/// The price of a purchase now, as it is after what shows in this call.
pub(crate) fn raised(price: UsdPerHour, faults: &[Fault]) -> UsdPerHour {
    let percent = faults.iter().find_map(|fault| match fault {
        Fault::PriceChangedAtLaunch(percent) => Some(*percent),
        _ => None,
    });
    dearer(price, percent.unwrap_or(0))
}

fn dearer(price: UsdPerHour, percent: u32) -> UsdPerHour {
    let micros = price.micros().saturating_mul(100 + i64::from(percent)) / 100;
    UsdPerHour::from_micros(micros).unwrap_or(price)
}
