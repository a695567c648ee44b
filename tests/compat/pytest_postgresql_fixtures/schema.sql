create table author (id int primary key generated always as identity, name text not null);
create table book (id int primary key generated always as identity, author int references author, title text);
insert into author (name) values ('Lem');
