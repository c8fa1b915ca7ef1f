//! Where tools may be: the egress list, and the addresses behind their names.

use testbed::ToolServer;
use testbed::tool::Conduct;

use crate::scene::{Scene, Unlike, assert_denied, assert_failed, envelope, tool};
use serde_json::json;

#[tokio::test]
async fn a_tool_that_is_not_on_the_egress_list_is_not_called() {
    let scene = Scene::start().await;
    let listed = format!("http://{}/echo", scene.destination("echo"));
    for others in [
        vec![],
        vec![listed.replace("/echo", "/other")],
        vec![listed.replace("http:", "https:")],
    ] {
        let reads = scene.reads().await;
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        scene.files.allow(&others);
        scene.reloaded(reads + 1).await;
        assert_denied(&scene.post("{}").await, 403, "egress_denied");
    }
    let reads = scene.reads().await;
    scene.files.allow(&[&listed]);
    scene.reloaded(reads + 1).await;
    assert_eq!(scene.post("{}").await.status, 200);
    assert_eq!(scene.echo.seen().len(), 1);
}

#[tokio::test]
async fn a_tools_name_reaches_only_the_addresses_listed_for_it() {
    let good = ToolServer::start([127, 0, 0, 1], Conduct::Echo)
        .await
        .unwrap();
    let port = good.addr().port();
    let url = format!("http://named.test:{port}/");
    let scene = Scene::start_unlike(Unlike {
        tools: vec![(tool("named", &url, ""), url)],
        ..Unlike::default()
    });
    let scene = scene.await;
    scene.grant(&format!("named.test:{port}"));
    scene.settle().await;
    let call = envelope("named", &json!(1));
    scene.policy_for_all().await;
    let answer = |addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| address.parse().unwrap());
        let answer = testbed::dns::Answer::Addresses(addresses.collect());
        scene.gateway.dns.answer("named.test", answer);
    };
    answer(&["127.0.0.1"]);
    assert_eq!(scene.post(&call).await.status, 200);
    for forbidden in [
        "127.0.0.2",
        "169.254.169.254",
        "10.0.0.1",
        "::1",
        "fe80::1",
        "0.0.0.0",
    ] {
        answer(&[forbidden]);
        assert_denied(
            &scene.post(&call).await,
            403,
            "destination_address_forbidden",
        );
    }
    scene
        .gateway
        .dns
        .answer("named.test", testbed::dns::Answer::Addresses(Vec::new()));
    assert_denied(&scene.post(&call).await, 502, "destination_unresolvable");
    assert_eq!(good.seen().len(), 1);
}

#[tokio::test]
async fn the_gateways_own_listeners_are_no_tools() {
    let scene = Scene::start().await;
    let admin = scene.gateway.authz.admin_http_addr();
    let url = format!("http://{admin}/healthz");
    scene.leads_echo_to(&url, &url).await;
    scene.grant(&admin.to_string());
    scene.settle().await;
    assert_denied(
        &scene.post("{}").await,
        403,
        "destination_address_forbidden",
    );
}

#[tokio::test]
async fn a_tool_behind_tls_must_show_a_certificate_for_its_name() {
    let scene = Scene::start().await;
    let pki = &scene.gateway.pki;
    let strangers = testbed::GatewayPki::generate().unwrap();
    let by_name = pki.server_config("echo").unwrap();
    let by_address = pki.server_config("127.0.0.1").unwrap();
    for (scheme, host, tls, allowed) in [
        ("https", "echo", Some(by_name.clone()), true),
        ("https", "127.0.0.1", Some(by_address.clone()), true),
        (
            "https",
            "echo",
            Some(pki.server_config("other").unwrap()),
            false,
        ),
        (
            "https",
            "echo",
            Some(pki.server_config("*.echo").unwrap()),
            false,
        ),
        (
            "https",
            "echo",
            Some(strangers.server_config("echo").unwrap()),
            false,
        ),
        (
            "https",
            "echo",
            Some(pki.expired_server_config("echo").unwrap()),
            false,
        ),
        // A name is vouched for by no address, nor an address by a name.
        ("https", "echo", Some(by_address), false),
        ("https", "127.0.0.1", Some(by_name.clone()), false),
        // Each is spoken to as its URL says, and never otherwise.
        ("https", "echo", None, false),
        ("http", "echo", Some(by_name), false),
    ] {
        let at = [127, 0, 0, 1];
        let server = match tls {
            Some(tls) => ToolServer::start_tls(at, Conduct::Echo, tls).await,
            None => ToolServer::start(at, Conduct::Echo).await,
        };
        let server = server.unwrap();
        let port = server.addr().port();
        let url = format!("{scheme}://{host}:{port}/echo?a=b%20c");
        let listed = url.replace("?a=b%20c", "");
        scene.leads_echo_to(&url, &listed).await;
        scene.grant(&format!("{host}:{port}"));
        scene.settle().await;
        let answer = scene.post(r#"{"a": 1}"#).await;
        if allowed {
            assert_eq!(
                (answer.status.as_u16(), answer.text()),
                (200, r#"{"a": 1}"#.to_owned())
            );
            let seen = server.only_seen().unwrap();
            assert_eq!(seen.path, "/echo?a=b%20c");
            assert_eq!(seen.header("host"), Some(&*format!("{host}:{port}")));
        } else {
            let reason = match scheme {
                "https" => "destination_unreachable",
                _ => "tool_answer_unreadable",
            };
            assert_failed(&answer, 502, reason);
            assert!(server.seen().is_empty());
        }
    }
}
