//! What else answers on the port: SSM, Pricing, STS; and whose requests are answered at all.

use petaflop_cloud_box::ec2::keys::Policy;
use serde_json::{Value, json};

use crate::fixture::{Fixture, HOME, Seen, Signer, form, own};

async fn json(fixture: &Fixture, region: &str, target: &str, body: Value) -> Seen {
    let service = if target.starts_with("AmazonSSM") { "ssm" } else { "pricing" };
    fixture.send(&own(), (service, region), Some(target), body.to_string()).await.unwrap()
}

#[tokio::test]
async fn a_parameter_of_ssm_names_the_image_of_its_region() {
    let fixture = Fixture::new();
    let name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64";
    let mut seen = Vec::new();
    for region in [HOME, "us-east-1"] {
        let answer =
            json(&fixture, region, "AmazonSSM.GetParameter", json!({ "Name": name })).await;
        assert_eq!((answer.status, &answer.json()["Parameter"]["Type"]), (200, &json!("String")));
        let value = answer.json()["Parameter"]["Value"].as_str().unwrap().to_owned();
        assert_eq!(value, fixture.image(region, false));
        seen.push(value);
    }
    assert_ne!(seen[0], seen[1]);
    let ecs = "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended";
    let answer = json(&fixture, HOME, "AmazonSSM.GetParameter", json!({ "Name": ecs })).await;
    let value = answer.json()["Parameter"]["Value"].as_str().unwrap().to_owned();
    assert!(serde_json::from_str::<Value>(&value).unwrap()["image_id"].is_string());
    let answer = json(&fixture, HOME, "AmazonSSM.GetParameter", json!({ "Name": "/x" })).await;
    assert_eq!((answer.status, &answer.json()["__type"]), (400, &json!("ParameterNotFound")));
}

fn term(field: &str, value: &str) -> Value {
    json!({ "Type": "TERM_MATCH", "Field": field, "Value": value })
}

#[tokio::test]
async fn list_prices_are_rows_of_json_in_text_and_come_in_pages() {
    let fixture = Fixture::new();
    let filters = [
        term("regionCode", "us-east-1"),
        term("operatingSystem", "Linux"),
        term("tenancy", "Shared"),
        term("preInstalledSw", "NA"),
        term("capacitystatus", "Used"),
        term("marketoption", "OnDemand"),
        term("productFamily", "Compute Instance"),
    ];
    let ask = |more: Vec<Value>, page: u32, token: &str| {
        let filters: Vec<Value> = filters.iter().cloned().chain(more).collect();
        json!({ "ServiceCode": "AmazonEC2", "FormatVersion": "aws_v1", "Filters": filters,
            "MaxResults": page, "NextToken": token })
    };
    let target = "AWSPriceListService.GetProducts";
    let one = ask(vec![term("instanceType", "c7i.large")], 100, "");
    let answer = json(&fixture, "us-east-1", target, one).await.json();
    let row: Value = serde_json::from_str(answer["PriceList"][0].as_str().unwrap()).unwrap();
    assert_eq!(row["product"]["attributes"]["instanceType"], "c7i.large");
    let terms = row["terms"]["OnDemand"].as_object().unwrap().values().next().unwrap().clone();
    let price = terms["priceDimensions"].as_object().unwrap().values().next().unwrap().clone();
    assert_eq!(
        (&price["unit"], &price["pricePerUnit"]["USD"]),
        (&json!("Hrs"), &json!("0.089250"))
    );
    let (mut token, mut rows) = (String::new(), 0);
    loop {
        let answer = json(&fixture, "us-east-1", target, ask(Vec::new(), 30, &token)).await.json();
        let page = answer["PriceList"].as_array().unwrap().len();
        rows += page;
        match answer["NextToken"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
        assert_eq!(page, 30);
    }
    assert!(rows > 60, "{rows}");
    let elsewhere = json(&fixture, HOME, target, ask(Vec::new(), 30, "")).await;
    assert_eq!(elsewhere.status, 501, "Pricing is in few regions");
}

#[tokio::test]
async fn sts_says_whose_key_it_is_and_gives_the_credentials_of_a_role() {
    let fixture = Fixture::with(|setup| {
        setup.roles.insert("reader".to_owned(), Policy::only(&["ec2:DescribeInstances"]));
    });
    let ask = async |signer: &Signer, action: &str, fields: &[(&str, &str)]| {
        let body = form(action, "2011-06-15", fields);
        fixture.send(signer, ("sts", HOME), None, body).await.unwrap()
    };
    let who = ask(&own(), "GetCallerIdentity", &[]).await;
    let result = "GetCallerIdentityResult";
    assert_eq!(who.body.at(&format!("{result}/Account")), "111122223333");
    assert_eq!(who.body.at(&format!("{result}/Arn")), "arn:aws:iam::111122223333:user/petaflop");
    let role = [("RoleArn", "arn:aws:iam::111122223333:role/reader"), ("RoleSessionName", "s")];
    let given = ask(&own(), "AssumeRole", &role).await;
    let field =
        |name: &str| given.body.at(&format!("AssumeRoleResult/Credentials/{name}")).to_owned();
    let reader = Signer {
        key: field("AccessKeyId"),
        secret: field("SecretAccessKey"),
        token: Some(field("SessionToken")),
    };
    let may = fixture.ask_as(&reader, HOME, "DescribeInstances", &[]).await.unwrap();
    let may_not = fixture.ask_as(&reader, HOME, "DescribeVolumes", &[]).await.unwrap();
    assert_eq!((may.status, may_not.code()), (200, "UnauthorizedOperation"));
    fixture.clock.advance(crate::fixture::HOUR);
    let late = fixture.ask_as(&reader, HOME, "DescribeInstances", &[]).await.unwrap();
    assert_eq!((late.status, late.code()), (400, "RequestExpired"));
    let nobody = [("RoleArn", "arn:aws:iam::111122223333:role/nobody"), ("RoleSessionName", "s")];
    let refused = ask(&own(), "AssumeRole", &nobody).await;
    assert_eq!((refused.status, refused.body.at("Error/Code")), (403, "AccessDenied"));
}

#[tokio::test]
async fn a_key_that_is_unknown_or_signs_wrongly_fails() {
    let fixture = Fixture::new();
    for signer in [Signer::of("AKIDNOBODY", "secret"), Signer::of("AKIDBOX", "guess")] {
        let seen = fixture.ask_as(&signer, HOME, "DescribeInstances", &[]).await.unwrap();
        assert_eq!((seen.status, seen.code()), (401, "AuthFailure"));
    }
    let body = form("DescribeInstances", "2016-11-15", &[]);
    let seen = fixture.send(&own(), ("ssm", HOME), None, body).await.unwrap();
    assert_eq!(seen.code(), "AuthFailure", "a signature is for one service");
    let body = form("GetCallerIdentity", "2011-06-15", &[]);
    let nobody = Signer::of("AKIDNOBODY", "x");
    let seen = fixture.send(&nobody, ("sts", HOME), None, body).await.unwrap();
    assert_eq!((seen.status, seen.body.at("Error/Code")), (403, "InvalidClientTokenId"));
}

#[tokio::test]
async fn an_action_that_is_not_served_is_invalid() {
    let fixture = Fixture::new();
    for action in ["CreateFleet", "StopInstances", "Explode"] {
        let seen = fixture.ask(action, &[]).await;
        assert_eq!((seen.status, seen.code()), (400, "InvalidAction"));
        assert!(seen.message().contains(action));
        assert_eq!(seen.body.name(), "Response");
        assert!(!seen.body.at("RequestID").is_empty());
    }
}

#[tokio::test]
async fn a_key_may_be_kept_from_ending_what_is_not_its_own() {
    let fixture = Fixture::with(|setup| {
        let actions = ["ec2:TerminateInstances", "ec2:DescribeInstances", "ec2:DeleteVolume"];
        let policy = Policy::owned(&actions, "petaflop.dev/cluster-id", "one");
        let key = petaflop_cloud_box::ec2::keys::Key { policy, ..setup.keys["AKIDBOX"].clone() };
        setup.keys.insert("AKIDOWN".to_owned(), key);
    });
    let tags = [
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.1.Tag.1.Key", "petaflop.dev/cluster-id"),
        ("TagSpecification.1.Tag.1.Value", "one"),
    ];
    let (own, other) = (fixture.running(false, &tags).await, fixture.running(false, &[]).await);
    let signer = Signer::of("AKIDOWN", "secret");
    let end = async |id: &str| {
        let ids = [("InstanceId.1", id)];
        fixture.ask_as(&signer, HOME, "TerminateInstances", &ids).await.unwrap()
    };
    assert_eq!(end(&other).await.code(), "UnauthorizedOperation");
    assert_eq!(end(&own).await.status, 200);
    assert_eq!(fixture.state(&other).await, "running");
}
